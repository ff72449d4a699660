// The progress of a notebook's newest task in the title of its tab.

import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';

import { changed, ended, IEvent, ITask, ITaskPage, percent, TaskChange } from './api';
import { Connection } from './connection';
import { IOpenRuntime, NAME } from './runtime';

/** `42 % ` in front of a title. */
const PREFIX = /^\d+ % /;

class Titles {
  constructor(private readonly notebooks: INotebookTracker) {}

  /** Learn the tasks that run already. */
  async load(connection: Connection): Promise<void> {
    const { tasks } = await connection.request<ITaskPage>('GET', 'tasks?state=running&limit=50');
    tasks.forEach(task => this.tasks.set(task.task_id, task));
    this.draw();
  }

  receive(data: TaskChange): void {
    const { task_id } = data;
    const task = changed(this.tasks.get(task_id), data);
    if (ended(task.status ?? '')) {
      this.tasks.delete(task_id);
    } else {
      this.tasks.set(task_id, task);
    }
    this.draw();
  }

  /** Write the titles. Without `show`, remove the progress from them. */
  draw(show = true): void {
    this.notebooks.forEach(panel => {
      const progress = show ? this.progressOf(panel) : null;
      const { title } = panel;
      const label = (progress === null ? '' : `${progress} % `) + title.label.replace(PREFIX, '');
      if (title.label !== label) {
        title.label = label;
      }
    });
  }

  /** The percentage of the newest running task of a notebook; null without one. */
  private progressOf(panel: NotebookPanel): number | null {
    // Ids sort by the time of submission.
    const ids = [...this.tasks].filter(([, task]) => task.status === 'running' && isOf(task, panel)).map(([id]) => id);
    return percent(this.tasks.get(ids.sort().pop() ?? '')?.progress);
  }

  private readonly tasks = new Map<string, Partial<ITask>>();
}

/** Return whether a notebook submitted the task. The task has the path of the file on the server's machine. */
function isOf(task: Partial<ITask>, panel: NotebookPanel): boolean {
  return `/${task.notebook ?? ''}`.endsWith(`/${panel.context.path}`);
}

export const titlesPlugin: JupyterFrontEndPlugin<void> = {
  id: `${NAME}:titles`,
  description: "Shows the progress of a notebook's newest task in the title of its tab.",
  autoStart: true,
  requires: [IOpenRuntime],
  optional: [INotebookTracker],
  activate: (_app: JupyterFrontEnd, { connection, settings }: IOpenRuntime, notebooks: INotebookTracker | null) => {
    if (!notebooks) {
      return;
    }
    const titles = new Titles(notebooks);
    let unsubscribe: (() => void) | null = null;
    connection.events.add(({ type, data }: IEvent) => {
      if (unsubscribe && type === 'connected') {
        titles.load(connection).catch(() => undefined); // the connection reports its state
      } else if (unsubscribe && data && (type === 'task_update' || type === 'task_progress')) {
        titles.receive(data);
      }
    });
    const follow = () => {
      if (settings.progressInTitle) {
        unsubscribe ??= connection.subscribe('task_progress');
      } else {
        unsubscribe?.();
        unsubscribe = null;
        titles.draw(false);
      }
    };
    settings.changed.add(follow);
    follow();
  }
};
