// Outputs of tasks in notebooks: they show the task as it is now, also in a saved notebook, and without a kernel.

import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { OutputAreaModel, SimplifiedOutputArea } from '@jupyterlab/outputarea';
import { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { IRenderMime } from '@jupyterlab/rendermime-interfaces';
import { Panel, Widget } from '@lumino/widgets';

import { Answer } from './answer';
import { changed, duration, ended, IOutputItem, IProgress, ITask, ITaskOutput, joined, percent, TaskState, titleOf } from './api';
import { messageOf, ResponseError } from './connection';
import { runAgain } from './dashboard';
import { CommandIDs, IOpenRuntime, NAME } from './runtime';

export const MIME_TYPE = 'application/vnd.openruntime.task+json';

/** What the kernel saves in a cell, as `notebook/display/tasks.py` describes it. */
interface ISavedTask {
  task_id: string;
  status: TaskState;
  operation: string;
  name?: string;
  progress?: IProgress;
  error?: string;
  /** The state in words, and further facts. */
  phrase: string;
  facts: string[];
  /** Time of the state in seconds since the epoch. */
  seen_at: number;
  /** Position in the output of the task up to which the cell shows it. */
  shown: number;
  /** True for a card, which stands for a task that runs in the background. */
  card?: boolean;
  /** True if the output is an answer in Markdown. */
  answer?: boolean;
}

/** Milliseconds without an update by the kernel after which this view asks the server. */
const KERNEL_SILENT = 3_000;
/** Interval between requests for output, in milliseconds. */
const OUTPUT_EVERY = 500;

/** Signs of states; that of the others is ✕. */
const SIGNS: Partial<Record<TaskState, string>> = { pending: '○', running: '●', completed: '✓', cancelled: '■' };

function count(n: number): string {
  return n.toLocaleString('en');
}

/** The state of a task in words, with the figures of this moment. */
function describe(task: ITask): string {
  const { status, progress } = task;
  const state = status === 'pending' ? 'waiting' : status.replace('_', ' ');
  if (ended(status)) {
    const ran = task.execution_time;
    const tokens = task.result?.output.completion_tokens;
    return (
      (ran == null ? state : `${state} ${status === 'completed' ? 'in' : 'after'} ${duration(ran)}`) +
      (tokens ? ` · ${count(tokens)} tokens` : '')
    );
  }
  const share = percent(progress);
  return joined([
    state,
    ...(status === 'pending'
      ? [task.position && `position ${task.position}`, task.waiting_for && `for ${task.waiting_for.replace(/^for /, '')}`]
      : []),
    progress && (share === null ? `${count(progress.n)} done` : `${share}% (${count(progress.n)} of ${count(progress.total!)})`),
    progress?.remaining && `about ${duration(Math.round(progress.remaining))} left`,
    task.started_at && duration(Math.max(0, (Date.now() - Date.parse(task.started_at)) / 1000)),
    progress?.message
  ]);
}

function element(className: string): HTMLSpanElement {
  const made = document.createElement('span');
  made.className = className;
  return made;
}

/** One task in the output of a cell. While the kernel updates it, it shows what the kernel says, and afterwards what the server says. */
class TaskRenderer extends Panel implements IRenderMime.IRenderer {
  constructor(
    private readonly openruntime: IOpenRuntime,
    private readonly rendermime: IRenderMimeRegistry,
    private readonly app: JupyterFrontEnd
  ) {
    super();
    this.addClass('jp-OpenRuntime-task');
    const line = new Widget();
    line.addClass('or-line');
    this.#sign.ariaHidden = 'true';
    this.#text.role = 'status';
    line.node.append(this.#sign, this.#name, this.#text, this.#bar, this.#buttons);
    this.addWidget(line);
    this.addWidget(new Widget({ node: this.#more }));
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    const saved = model.data[MIME_TYPE] as unknown as ISavedTask;
    if (saved.task_id !== this.#saved?.task_id) {
      this.#reset();
    } else if (saved.shown > this.#saved.shown) {
      this.#clearOutput(); // the kernel shows it in the cell
    }
    this.#saved = saved;
    this.#silentAt = 1000 * saved.seen_at + KERNEL_SILENT;
    if (saved.answer) {
      if (!this.#answer) {
        this.#answer = new Answer(this.rendermime);
        this.addWidget(this.#answer.renderer);
      }
      await this.#answer.show(model);
    }
    this.#draw();
    this.#follow();
  }

  protected override onAfterAttach(): void {
    this.#redraws = this.openruntime.connection.changed.add(() => this.#draw());
    this.#follow();
  }

  protected override onBeforeDetach(): void {
    this.#redraws?.();
    this.#reset();
  }

  /** True while the kernel updates the output: it runs the cell, or has updated the output lately. */
  get #kernelLive(): boolean {
    const prompt = this.#saved?.card ? null : this.node.closest('.jp-CodeCell')?.querySelector('.jp-InputPrompt');
    return Date.now() < this.#silentAt || Boolean(prompt?.textContent?.includes('*'));
  }

  /** Follow the task until its end is shown. */
  #follow(): void {
    if (this.#removals || !this.isAttached || !this.#saved || ended(this.#saved.status)) {
      return;
    }
    const { connection } = this.openruntime;
    const removals = [
      connection.subscribe('task_progress'),
      connection.events.add(({ data }) => {
        if (this.#task && data?.task_id === this.#task.task_id && !ended(this.#task.status)) {
          this.#task = changed(this.#task, data);
        }
      })
    ];
    const timer = window.setInterval(() => void this.#tick(), OUTPUT_EVERY);
    this.#removals = [...removals, () => clearInterval(timer)];
    void this.#tick();
  }

  #stop(): void {
    this.#removals?.forEach(remove => remove());
    this.#removals = null;
  }

  #reset(): void {
    this.#stop();
    this.#task = null;
    this.#problem = '';
    this.#unknown = false;
    this.#clearOutput();
  }

  #clearOutput(): void {
    this.#since = 0;
    this.#answer?.set(null);
    this.#area?.dispose();
    this.#area = null;
    this.#displays.clear();
  }

  /** Ask the server for the state and the output that the cell does not have. */
  async #tick(): Promise<void> {
    const saved = this.#saved;
    if (!saved || ended(saved.status)) {
      this.#stop(); // the kernel has shown the end
    } else if (this.openruntime.connection.state !== 'live') {
      this.#task = null;
    } else if (!this.#kernelLive && !this.#busy && !document.hidden) {
      this.#busy = true;
      const shows = () => saved.task_id === this.#saved?.task_id && !this.#kernelLive; // not after "Retry"
      try {
        await this.#refresh(saved.task_id, shows);
        this.#problem = '';
      } catch (error) {
        if (shows()) {
          this.#fail(error);
          if (this.#unknown) {
            this.#stop();
            this.#problem = '';
          }
        }
      }
      this.#busy = false;
    }
    this.#draw();
  }

  #fail(error: unknown): void {
    this.#problem = messageOf(error);
    this.#unknown = (error as Partial<ResponseError> | undefined)?.status === 404; // deleted, or of another runtime
  }

  /** Request what is shown; reject if `shows` tells that the output shows something else by then. */
  async #refresh(id: string, shows: () => boolean): Promise<void> {
    const read = async <T>(path: string): Promise<T> => {
      const answer = await this.openruntime.connection.request<T>('GET', `tasks/${id}${path}`);
      return shows() ? answer : Promise.reject();
    };
    // Again while it is pending: the event of its start may have come before the last answer.
    if (!this.#task || this.#task.status === 'pending') {
      this.#task = await read<ITask>('?parameters=false');
    }
    const since = Math.max(this.#since, this.#saved?.shown ?? 0);
    const output = await read<ITaskOutput>(`/output?since=${since}`);
    this.#since = output.next;
    output.items.forEach(item => this.#append(item));
    if (output.finished) {
      this.#task = await read<ITask>('?parameters=false');
      const answer = this.#task.result?.output.text;
      if (answer) {
        this.#answer?.set(answer);
      }
      this.#stop();
    }
    if (output.items.length || output.finished) {
      await this.#answer?.render();
    }
  }

  /** Add an output that the cell does not have. */
  #append(item: IOutputItem): void {
    if (this.#answer && (item.name === 'stdout' || item.output_type === 'clear_output')) {
      this.#answer.add(item);
      return;
    }
    if (!this.#area) {
      this.#area = new SimplifiedOutputArea({ model: new OutputAreaModel(), rendermime: this.rendermime });
      this.#area.addClass('jp-OpenRuntime-task-output');
      const cell = this.node.closest('.jp-OutputArea');
      if (cell instanceof HTMLElement && !this.#saved?.card) {
        Widget.attach(this.#area, cell); // below the output that the cell has
      } else {
        this.addWidget(this.#area);
      }
    }
    const { model } = this.#area;
    const { output_type, display_id, text, name, wait } = item;
    const at = this.#displays.get(display_id ?? '');
    if (output_type === 'clear_output') {
      model.clear(wait);
      this.#displays.clear();
    } else if (output_type === 'stream') {
      model.add({ output_type, name: name ?? 'stdout', text: text ?? '' });
    } else {
      const shown: any = { ...item, output_type: output_type.replace('update_', ''), metadata: item.metadata ?? {} };
      if (at !== undefined && shown.output_type !== output_type) {
        model.set(at, shown);
      } else {
        // Also an update of a display that the cell has: saved displays have no ids.
        this.#displays.set(display_id ?? '', model.add(shown) - 1);
      }
    }
  }

  #draw(): void {
    const saved = this.#saved;
    if (!saved) {
      return;
    }
    const task = this.#kernelLive || ended(saved.status) ? null : this.#task;
    const { status, progress } = task ?? saved;
    const { state } = this.openruntime.connection;
    this.node.dataset.state = status;
    write(this.#sign, SIGNS[status] ?? '✕');
    write(this.#name, titleOf(saved));
    this.#name.title = saved.task_id;
    const current = task || this.#kernelLive || ended(status);
    const words = task ? describe(task) : joined([saved.phrase, ...saved.facts]);
    const time = current ? '' : `as of ${new Date(1000 * saved.seen_at).toLocaleString()}`;
    const away = current || state === 'live' || state === 'connecting' || state === 'absent' ? '' : state;
    write(this.#text, joined([words, time, away, this.#problem]));
    const share = percent(progress);
    this.#bar.hidden = ended(status) || share === null;
    this.#bar.style.setProperty('--share', `${share ?? 0}%`);
    // The kernel shows errors and results of other outputs below this line.
    const result = saved.card && status === 'completed' && `%openruntime result ${saved.task_id}`;
    write(this.#more, (task ?? (saved.card ? saved : null))?.error || result || '');
    this.#drawButtons(state !== 'live' || this.#unknown ? [] : [ended(status) ? 'Retry' : 'Cancel', 'Open']);
  }

  #drawButtons(labels: string[]): void {
    if (labels.join() !== [...this.#buttons.children].map(button => button.textContent).join()) {
      this.#buttons.replaceChildren(...labels.map(label => this.#button(label)));
    }
  }

  #button(label: string): HTMLButtonElement {
    const button = document.createElement('button');
    button.textContent = label;
    button.className = 'jp-mod-styled';
    button.ariaLabel = `${label} ${titleOf(this.#saved!)}`;
    button.onclick = async () => {
      button.disabled = true;
      try {
        await this.#act(label, (this.#task ?? this.#saved!).task_id);
        this.#problem = '';
      } catch (error) {
        this.#fail(error);
      }
      button.disabled = false;
      this.#draw();
    };
    return button;
  }

  async #act(label: string, id: string): Promise<void> {
    const { connection } = this.openruntime;
    if (label === 'Cancel') {
      await connection.request('DELETE', `tasks/${id}`);
    } else if (label === 'Open') {
      await this.app.commands.execute(CommandIDs.togglePanel, { task: id });
    } else {
      // The output follows the new task.
      const again = await runAgain(connection, id);
      this.#reset();
      this.#answer?.restart();
      await this.#answer?.render();
      this.#task = again;
      this.#saved = { ...this.#saved!, task_id: again.task_id, status: again.status, seen_at: 0, shown: 0, progress: undefined };
      this.#silentAt = 0;
      this.#follow();
    }
  }

  readonly #sign = element('or-sign');
  readonly #name = element('or-name');
  readonly #text = element('or-text');
  readonly #bar = element('or-bar');
  readonly #buttons = element('or-buttons');
  readonly #more = element('or-more');
  /** Positions of displays in the output area by their id. */
  readonly #displays = new Map<string, number>();
  #area: SimplifiedOutputArea | null = null;
  #answer: Answer | null = null;
  #saved: ISavedTask | null = null;
  /** The task as the server knows it; null until it was asked. */
  #task: ITask | null = null;
  #problem = '';
  /** True if the server does not have the task. */
  #unknown = false;
  #busy = false;
  #since = 0;
  #silentAt = 0;
  #redraws: (() => void) | null = null;
  #removals: (() => void)[] | null = null;
}

/** Set the text of an element if it has changed. */
function write(node: HTMLElement, text: string): void {
  if (node.textContent !== text) {
    node.textContent = text;
  }
}

export const outputPlugin: JupyterFrontEndPlugin<void> = {
  id: `${NAME}:output`,
  description: 'Shows tasks in the outputs of cells as they are now.',
  autoStart: true,
  requires: [IOpenRuntime, IRenderMimeRegistry],
  activate: (app: JupyterFrontEnd, openruntime: IOpenRuntime, rendermime: IRenderMimeRegistry) => {
    rendermime.addFactory(
      { safe: true, mimeTypes: [MIME_TYPE], createRenderer: () => new TaskRenderer(openruntime, rendermime, app) },
      40 // before text/html, which is for pages without this extension
    );
  }
};
