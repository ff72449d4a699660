// Outputs of tasks in notebooks: they show the task as it is now, also in a saved notebook, and without a kernel.

import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { OutputAreaModel, SimplifiedOutputArea } from '@jupyterlab/outputarea';
import { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { IRenderMime } from '@jupyterlab/rendermime-interfaces';
import { Panel, Widget } from '@lumino/widgets';

import { changed, duration, ended, IOutputItem, ITask, ITaskOutput, percent, TaskState, titleOf } from './api';
import { messageOf } from './connection';
import { runAgain } from './dashboard';
import { CommandIDs, IOpenRuntime, NAME } from './runtime';

export const MIME_TYPE = 'application/vnd.openruntime.task+json';

/** What the kernel saves in a cell. */
interface ISavedTask extends Partial<ITask> {
  task_id: string;
  status: TaskState;
  /** Time of the state in seconds since the epoch. */
  seen_at: number;
  /** Position in the output up to which the cell shows it. */
  shown: number;
}

/** Milliseconds without an update by the kernel after which this view shows further output itself. */
const KERNEL_SILENT = 3_000;
/** Interval between requests for output, in milliseconds. */
const OUTPUT_EVERY = 500;
/** Delay before the state is requested when an output is created, in milliseconds: the kernel replaces it quickly. */
const SETTLE = 300;

const SIGNS: Record<TaskState, string> = {
  pending: '○',
  running: '●',
  completed: '✓',
  failed: '✕',
  cancelled: '■',
  timed_out: '✕',
  interrupted: '✕'
};

function words(task: ISavedTask, live: boolean): string {
  const state = task.status === 'pending' ? 'waiting' : task.status.replace('_', ' ');
  const parts: (string | null | undefined | false)[] = [state];
  if (ended(task.status)) {
    const before = task.status === 'completed' ? 'in' : 'after';
    return task.execution_time == null ? state : `${state} ${before} ${duration(task.execution_time)}`;
  }
  if (task.status === 'pending') {
    parts.push(task.position ? `position ${task.position}` : null, task.waiting_for ? `for ${task.waiting_for.replace(/^for /, '')}` : null);
  }
  const share = percent(task.progress);
  parts.push(
    share === null ? (task.progress ? `${task.progress.n} done` : null) : `${share} %`,
    task.progress?.remaining ? `about ${duration(Math.round(task.progress.remaining))} left` : null,
    live && task.started_at ? duration(Math.max(0, (Date.now() - Date.parse(task.started_at)) / 1000)) : null,
    task.progress?.message
  );
  return parts.filter(Boolean).join(' · ');
}

/** One task in the output of a cell. */
class TaskOutputRenderer extends Panel implements IRenderMime.IRenderer {
  constructor(
    private readonly openruntime: IOpenRuntime,
    private readonly rendermime: IRenderMimeRegistry,
    private readonly app: JupyterFrontEnd
  ) {
    super();
    this.addClass('jp-OpenRuntime-task');
    const line = new Widget();
    line.addClass('jp-OpenRuntime-task-line');
    line.node.append(this.sign, this.name, this.text, this.bar, this.buttons);
    this.sign.setAttribute('aria-hidden', 'true');
    this.name.className = 'jp-OpenRuntime-task-name';
    this.text.setAttribute('role', 'status');
    this.bar.className = 'jp-OpenRuntime-task-bar';
    this.addWidget(line);
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    const saved = model.data[MIME_TYPE] as unknown as ISavedTask;
    this.savedText = String(model.data['text/plain'] ?? '');
    // A late update of the kernel must not hide what the server has said since.
    if (!this.task || !ended(this.task.status) || this.task.task_id !== saved.task_id) {
      this.task = saved;
      this.known = ended(saved.status);
    }
    this.since ||= saved.shown;
    this.silentAt = Math.max(Date.now(), 1000 * saved.seen_at) + KERNEL_SILENT;
    if (Date.now() > 1000 * saved.seen_at + KERNEL_SILENT) {
      this.silentAt = 0;
    }
    this.draw();
    if (!this.known && this.isAttached) {
      this.follow();
    }
  }

  protected override onAfterAttach(): void {
    if (this.task && !this.known) {
      this.follow();
    }
  }

  protected override onBeforeDetach(): void {
    this.stop();
  }

  /** Follow the task until its end is shown. */
  private follow(): void {
    if (this.removals.length) {
      return;
    }
    const { connection } = this.openruntime;
    this.removals = [
      connection.subscribe('task_progress'),
      connection.changed.add(() => this.onConnection()),
      connection.events.add(({ data }) => {
        if (data && this.task && data.task_id === this.task.task_id && !ended(this.task.status)) {
          this.task = changed(this.task, data);
          this.draw();
        }
      })
    ];
    this.ticking = window.setInterval(() => void this.tick(), OUTPUT_EVERY);
    setTimeout(() => void this.load(), SETTLE);
  }

  private stop(): void {
    this.removals.forEach(remove => remove());
    this.removals = [];
    clearInterval(this.ticking);
  }

  private onConnection(): void {
    if (this.openruntime.connection.state === 'live' && !this.loaded) {
      void this.load();
    } else {
      this.loaded = this.loaded && this.openruntime.connection.state === 'live';
      this.draw();
    }
  }

  /** Request the state of the task. */
  private async load(): Promise<void> {
    const { connection } = this.openruntime;
    if (connection.state !== 'live' || this.loaded || !this.task || !this.removals.length) {
      return;
    }
    this.loaded = true;
    try {
      const task = await connection.request<ITask>('GET', `tasks/${this.task.task_id}?parameters=false`);
      this.task = { ...this.task, ...task };
      this.problem = '';
    } catch (error) {
      this.loaded = false;
      this.problem = messageOf(error);
    }
    this.draw();
  }

  private async tick(): Promise<void> {
    if (!this.loaded || this.busy || document.hidden || !this.task) {
      return;
    }
    this.draw();
    if (Date.now() < this.silentAt) {
      return; // the kernel shows the output
    }
    this.busy = true;
    try {
      const state = this.task.status;
      const output = await this.openruntime.connection.request<ITaskOutput>('GET', `tasks/${this.task.task_id}/output?since=${this.since}`);
      this.since = output.next;
      this.append(output.items);
      if (output.finished && ended(state)) {
        this.known = true;
        this.stop();
      }
    } catch (error) {
      this.problem = messageOf(error);
    } finally {
      this.busy = false;
    }
  }

  /** Show output that the cell does not have. */
  private append(items: IOutputItem[]): void {
    if (!items.length) {
      return;
    }
    if (!this.area) {
      this.area = new SimplifiedOutputArea({ model: new OutputAreaModel({ trusted: false }), rendermime: this.rendermime });
      this.area.addClass('jp-OpenRuntime-task-output');
      this.addWidget(this.area);
    }
    const { model } = this.area;
    for (const item of items) {
      if (item.output_type === 'clear_output') {
        model.clear(item.wait);
        this.displays.clear();
        continue;
      }
      const output = { ...item, metadata: item.metadata ?? {} };
      const at = item.display_id ? this.displays.get(item.display_id) : undefined;
      if (item.output_type === 'update_display_data') {
        if (at !== undefined) {
          model.set(at, { ...output, output_type: 'display_data' } as any);
        }
        continue;
      }
      model.add((item.output_type === 'stream' ? { output_type: 'stream', name: item.name, text: item.text ?? '' } : output) as any);
      if (item.display_id) {
        this.displays.set(item.display_id, model.length - 1);
      }
    }
  }

  private draw(): void {
    const { task, openruntime } = this;
    if (!task) {
      return;
    }
    const live = this.known || this.loaded || Date.now() < this.silentAt;
    this.node.dataset.state = task.status;
    this.sign.textContent = SIGNS[task.status];
    this.name.textContent = titleOf(task);
    this.name.title = task.task_id;
    const time = live || ended(task.status) ? '' : `as of ${new Date(1000 * task.seen_at).toLocaleString()}`;
    const { state } = openruntime.connection;
    const why = live || state === 'live' || state === 'connecting' ? this.problem : state === 'absent' ? '' : state;
    const text = [words(task, live), time, why].filter(Boolean).join(' · ');
    if (this.text.textContent !== text) {
      this.text.textContent = text;
    }
    this.text.title = this.savedText;
    const share = percent(task.progress);
    this.bar.hidden = ended(task.status) || share === null;
    this.bar.style.setProperty('--share', `${share ?? 0}%`);
    this.drawButtons(task);
  }

  private drawButtons(task: ISavedTask): void {
    const { connection } = this.openruntime;
    const names = connection.state !== 'live' ? [] : ended(task.status) ? ['Retry', 'Open'] : ['Cancel', 'Open'];
    if (names.join() === [...this.buttons.children].map(button => button.textContent).join()) {
      return;
    }
    const actions: Record<string, () => Promise<unknown>> = {
      Cancel: () => connection.request('DELETE', `tasks/${task.task_id}`),
      Retry: async () => {
        const again = await runAgain(connection, task.task_id);
        this.restart(again);
      },
      Open: () => this.app.commands.execute(CommandIDs.togglePanel, { show: true, task: task.task_id })
    };
    this.buttons.replaceChildren(
      ...names.map(name => {
        const button = document.createElement('button');
        button.textContent = name;
        button.className = 'jp-OpenRuntime-task-button';
        button.setAttribute('aria-label', `${name} ${titleOf(task)}`);
        button.onclick = async () => {
          button.disabled = true;
          try {
            await actions[name]();
            this.problem = '';
          } catch (error) {
            this.problem = messageOf(error);
          }
          button.disabled = false;
          this.draw();
        };
        return button;
      })
    );
  }

  /** Follow the task that runs the same again. */
  private restart(task: ITask): void {
    this.stop();
    this.task = { ...task, seen_at: Date.now() / 1000, shown: 0 };
    this.since = 0;
    this.silentAt = 0;
    this.known = this.loaded = false;
    this.area?.model.clear();
    this.displays.clear();
    this.follow();
  }

  private readonly sign = document.createElement('span');
  private readonly name = document.createElement('span');
  private readonly text = document.createElement('span');
  private readonly bar = document.createElement('span');
  private readonly buttons = document.createElement('span');
  private readonly displays = new Map<string, number>();
  private area: SimplifiedOutputArea | null = null;
  private task: ISavedTask | null = null;
  private savedText = '';
  private problem = '';
  /** True once the final state is shown and no further output will come. */
  private known = false;
  /** True while the state is the server's. */
  private loaded = false;
  private busy = false;
  private since = 0;
  private silentAt = 0;
  private ticking = 0;
  private removals: (() => void)[] = [];
}

export const outputPlugin: JupyterFrontEndPlugin<void> = {
  id: `${NAME}:output`,
  description: 'Shows tasks in the outputs of cells as they are now.',
  autoStart: true,
  requires: [IOpenRuntime, IRenderMimeRegistry],
  activate: (app: JupyterFrontEnd, openruntime: IOpenRuntime, rendermime: IRenderMimeRegistry) => {
    rendermime.addFactory(
      {
        safe: true,
        mimeTypes: [MIME_TYPE],
        createRenderer: () => new TaskOutputRenderer(openruntime, rendermime, app)
      },
      // Before text/html, which is for pages without this extension.
      40
    );
  }
};
