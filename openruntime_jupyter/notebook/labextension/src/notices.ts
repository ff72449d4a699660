// Notices of tasks that have finished after a long time.

import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { Notification } from '@jupyterlab/apputils';

import { duration, ended, IEvent, TaskChange, titleOf } from './api';
import { CommandIDs, IOpenRuntime, NAME } from './runtime';

/** Tasks that finish within this time, in milliseconds, are reported together. */
const TOGETHER = 2_000;
const AUTO_CLOSE = 10_000;
const LONGEST_ERROR = 140;

const KINDS: Record<string, 'success' | 'warning' | 'error'> = { completed: 'success', cancelled: 'warning' };

function kindOf(task: TaskChange): 'success' | 'warning' | 'error' {
  return KINDS[task.status ?? ''] ?? 'error';
}

function sentence(task: TaskChange): string {
  const state = task.status?.replace('_', ' ');
  const text = `${titleOf(task)}: ${state} after ${duration(task.execution_time ?? 0)}`;
  return task.error ? `${text}. ${task.error.slice(0, LONGEST_ERROR)}` : text;
}

function message(tasks: TaskChange[]): string {
  if (tasks.length === 1) {
    return sentence(tasks[0]);
  }
  const failed = tasks.filter(task => kindOf(task) === 'error').length;
  const names = tasks.slice(0, 3).map(titleOf).join(', ');
  const more = tasks.length > 3 ? ` and ${tasks.length - 3} more` : '';
  return `${tasks.length} tasks finished${failed ? `, ${failed} failed` : ''}: ${names}${more}`;
}

class Notices {
  constructor(private readonly show: (task: TaskChange) => void) {}

  add(task: TaskChange): void {
    this.#tasks.push(task);
    this.#due ||= window.setTimeout(() => this.#emit(), TOGETHER);
  }

  #emit(): void {
    const tasks = this.#tasks;
    this.#tasks = [];
    this.#due = 0;
    const kinds = tasks.map(kindOf);
    const kind = kinds.includes('error') ? 'error' : kinds.includes('warning') ? 'warning' : 'success';
    const actions: Notification.IAction[] = [{ label: 'Show', callback: () => this.show(tasks[Math.max(0, kinds.indexOf('error'))]) }];
    const supported = 'Notification' in window;
    if (supported && window.Notification.permission === 'default') {
      // Browsers ask for the permission only on a click, and so do we.
      actions.push({ label: 'Also on the desktop', callback: () => void window.Notification.requestPermission() });
    }
    Notification.emit(message(tasks), kind, { autoClose: AUTO_CLOSE, actions });
    if (supported && document.hidden && window.Notification.permission === 'granted') {
      // Several pages with the same tag show one notice.
      const notice = new window.Notification('OpenRuntime', { body: message(tasks), tag: tasks[0].task_id });
      notice.onclick = () => window.focus();
    }
  }

  #tasks: TaskChange[] = [];
  #due = 0;
}

export const noticesPlugin: JupyterFrontEndPlugin<void> = {
  id: `${NAME}:notices`,
  description: 'Notifies of long tasks that have finished.',
  autoStart: true,
  requires: [IOpenRuntime],
  activate: (app: JupyterFrontEnd, { connection, settings }: IOpenRuntime) => {
    const notices = new Notices(({ task_id }) => void app.commands.execute(CommandIDs.togglePanel, { task: task_id }));
    connection.events.add(({ type, data }: IEvent) => {
      const long = settings.notifyAfter > 0 && (data?.execution_time ?? 0) >= settings.notifyAfter;
      if (type === 'task_update' && data && ended(data.status ?? '') && long) {
        notices.add(data);
      }
    });
  }
};
