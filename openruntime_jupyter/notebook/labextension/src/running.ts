// The tasks of the queue in Jupyter's panel of running things.

import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { IRunningSessionManagers, IRunningSessions } from '@jupyterlab/running';
import { Signal } from '@lumino/signaling';

import { ITask, ITaskPage, joined, titleOf } from './api';
import { queueIcon } from './icon';
import { CommandIDs, IOpenRuntime, NAME } from './runtime';

/** Delay between a change and the request for the list, in milliseconds, so that many changes cause one request. */
const DELAY = 500;
const LIMIT = 100;

/** Where a task runs, in a few letters, because the column is narrow; empty for this machine. */
function hostOf({ device_used }: ITask): string | undefined {
  return /.+(?=\.)/.exec(device_used ?? '')?.[0];
}

export const runningPlugin: JupyterFrontEndPlugin<void> = {
  id: `${NAME}:running`,
  description: 'Lists tasks in the panel of running things.',
  autoStart: true,
  requires: [IOpenRuntime],
  optional: [IRunningSessionManagers],
  activate: (app: JupyterFrontEnd, { connection }: IOpenRuntime, managers: IRunningSessionManagers | null) => {
    if (!managers) {
      return;
    }
    let tasks: ITask[] = [];
    /** False if tasks have changed since the request for the list. */
    let current = false;
    let due = 0;
    const runningChanged = new Signal<object, void>({});

    const isShown = () => !document.hidden && [...document.querySelectorAll('.jp-RunningSessions')].some(panel => panel.checkVisibility());
    const refresh = async () => {
      due = 0;
      if (!isShown()) {
        return;
      }
      current = connection.state === 'live';
      try {
        tasks = current ? (await connection.request<ITaskPage>('GET', `tasks?state=running,pending&limit=${LIMIT}`)).tasks : [];
        runningChanged.emit();
      } catch {
        // The connection reports its state.
      }
    };
    const schedule = () => (due ||= window.setTimeout(() => void refresh(), DELAY));
    connection.events.add(({ type }) => {
      if (type === 'task_update' || type === 'connected') {
        current = false;
        schedule();
      }
    });
    document.addEventListener('visibilitychange', schedule);

    const cancel = (task: ITask) => {
      connection.request('DELETE', `tasks/${task.task_id}`).then(schedule, schedule);
    };
    const item = (task: ITask): IRunningSessions.IRunningItem => ({
      icon: () => queueIcon,
      label: () => titleOf(task),
      labelTitle: () => joined([task.notebook, task.task_id], '\n'),
      detail: () => (task.status === 'pending' && task.position ? `waiting, position ${task.position}` : hostOf(task) ? `on ${hostOf(task)}` : task.status),
      open: () => void app.commands.execute(CommandIDs.togglePanel, { task: task.task_id }),
      shutdown: () => cancel(task)
    });
    managers.add({
      name: 'OpenRuntime Tasks',
      // Jupyter calls it when the panel is shown.
      running: () => {
        if (!current) {
          schedule();
        }
        return tasks.map(item);
      },
      shutdownAll: () => tasks.forEach(cancel),
      refreshRunning: schedule,
      runningChanged,
      shutdownLabel: 'Cancel',
      shutdownAllLabel: 'Cancel All',
      shutdownAllConfirmationText: 'Cancel all tasks that you may cancel?'
    });
  }
};
