// The progress of a notebook's newest task in the title of its tab, which is the browser's in Notebook 7.

import { ILabShell, JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';

import { changed, ended, IEvent, ITask, ITaskPage, percent, TaskChange } from './api';
import { Connection } from './connection';
import { IOpenRuntime, NAME } from './runtime';

/** `42 % ` in front of the browser's title. */
const PREFIX = /^\d+ % /;
/** Delay of the request for unknown tasks in milliseconds, so that many of them cause one request. */
const DELAY = 1_000;

class Titles {
  constructor(
    private readonly notebooks: INotebookTracker,
    private readonly connection: Connection,
    private readonly inTabs: boolean
  ) {}

  /** Follow the tasks until `stop` is called. */
  start(): void {
    if (!this.#removals.length) {
      const { connection } = this;
      this.#removals = [connection.subscribe('task_progress'), connection.events.add(event => this.#receive(event))];
      this.#load();
    }
  }

  stop(): void {
    this.#removals.forEach(remove => remove());
    this.#removals = [];
    this.#tasks.clear();
    this.#draw();
  }

  #receive({ type, data }: IEvent): void {
    if (type === 'connected') {
      this.#tasks.clear();
      this.#load();
    } else if (data && (type === 'task_update' || type === 'task_progress')) {
      this.#change(data);
    }
  }

  #change(data: TaskChange): void {
    const { task_id, status = '', n } = data;
    const task = this.#tasks.get(task_id);
    if (ended(status)) {
      this.#tasks.delete(task_id);
    } else if (task) {
      this.#tasks.set(task_id, changed(task, data));
    } else if (n !== undefined) {
      this.#load(); // events do not name the notebook
    }
    this.#draw();
  }

  /** Request the running tasks. */
  #load(): void {
    this.#due ||= window.setTimeout(async () => {
      this.#due = 0;
      if (this.connection.state !== 'live') {
        return;
      }
      try {
        const { tasks } = await this.connection.request<ITaskPage>('GET', 'tasks?state=running&limit=100');
        tasks.forEach(task => this.#tasks.set(task.task_id, task));
        this.#draw();
      } catch {
        // The next event of an unknown task repeats the request.
      }
    }, DELAY);
  }

  #draw(): void {
    this.notebooks.forEach(panel => {
      const progress = this.#progressOf(panel);
      const text = progress === null ? '' : `${progress} % `;
      if (this.inTabs) {
        // The style sheet shows it. A change of the title's label would rename the file.
        const { openruntime, ...others } = panel.title.dataset as Record<string, string>;
        if ((openruntime ?? '') !== text) {
          panel.title.dataset = text ? { ...others, openruntime: text } : others;
        }
      } else if (!document.title.startsWith(text) || (!text && PREFIX.test(document.title))) {
        document.title = text + document.title.replace(PREFIX, '');
      }
    });
  }

  /** The percentage of the newest running task of a notebook; null without one. */
  #progressOf(panel: NotebookPanel): number | null {
    // Ids sort by the time of submission.
    const ids = [...this.#tasks].filter(([, task]) => task.status === 'running' && isOf(task, panel)).map(([id]) => id);
    return percent(this.#tasks.get(ids.sort().pop() ?? '')?.progress);
  }

  readonly #tasks = new Map<string, ITask>();
  #removals: (() => void)[] = [];
  #due = 0;
}

/** Return whether a notebook submitted the task. The task has the path of the file on the server's machine. */
function isOf(task: ITask, panel: NotebookPanel): boolean {
  return `/${task.notebook ?? ''}`.endsWith(`/${panel.context.localPath}`);
}

export const titlesPlugin: JupyterFrontEndPlugin<void> = {
  id: `${NAME}:titles`,
  description: "Shows the progress of a notebook's newest task in the title of its tab.",
  autoStart: true,
  requires: [IOpenRuntime],
  optional: [INotebookTracker, ILabShell],
  activate: (
    _app: JupyterFrontEnd,
    { connection, settings }: IOpenRuntime,
    notebooks: INotebookTracker | null,
    labShell: ILabShell | null
  ) => {
    if (!notebooks) {
      return;
    }
    const titles = new Titles(notebooks, connection, labShell !== null);
    const follow = () => (settings.progressInTitle ? titles.start() : titles.stop());
    settings.changed.add(follow);
    follow();
  }
};
