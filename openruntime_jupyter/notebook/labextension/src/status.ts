// The status line: in the status bar of JupyterLab, in the top bar of Notebook 7.

import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { IToolbarWidgetRegistry } from '@jupyterlab/apputils';
import { IStatusBar } from '@jupyterlab/statusbar';
import { Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';

import { IMetrics, joined } from './api';
import { CommandIDs, IOpenRuntime, NAME } from './runtime';

const HELP = 'OpenRuntime: tasks of all notebooks. Click for the dashboard.';

/** The queue in one line: `2 running · 1 waiting · 1 on mac2 · GPU 87 % · memory 24 %`. */
class StatusLine extends Widget {
  constructor(
    private readonly openruntime: IOpenRuntime,
    onClick: () => void
  ) {
    super({ node: document.createElement('button') });
    this.addClass('jp-OpenRuntime-status');
    this.node.onclick = onClick;
    this.#removeListeners = [openruntime.connection.changed.add(() => this.#draw()), openruntime.settings.changed.add(() => this.#draw())];
    this.#draw();
  }

  override dispose(): void {
    this.#removeListeners.forEach(remove => remove());
    super.dispose();
  }

  #draw(): void {
    const { connection, settings } = this.openruntime;
    const { state, reason, metrics } = connection;
    const text = state === 'live' && metrics ? describe(metrics) : state === 'connecting' ? '' : `OpenRuntime: ${state}`;
    if (this.node.textContent !== text) {
      this.node.textContent = text;
    }
    this.node.title = joined([reason, HELP], '\n');
    this.setHidden(state === 'absent' || text === '' || !settings.showStatus);
  }

  readonly #removeListeners: (() => void)[];
}

function describe(metrics: IMetrics): string {
  const { active_tasks, pending_tasks, hosts, gpu_utilization, cpu_utilization, memory_usage } = metrics;
  const percent = (label: string, value: number | null) => (value === null ? '' : `${label} ${Math.round(value)} %`);
  const queue = active_tasks || pending_tasks ? `${active_tasks} running · ${pending_tasks} waiting` : 'idle';
  // Without a GPU its utilization is 0, and the processor does the work.
  const device = gpu_utilization ? percent('GPU', gpu_utilization) : percent('CPU', cpu_utilization);
  return joined([queue, hosts, device, percent('memory', memory_usage)]);
}

export const statusPlugin: JupyterFrontEndPlugin<void> = {
  id: `${NAME}:status`,
  description: 'Shows the queue in the status bar or top bar.',
  autoStart: true,
  requires: [IOpenRuntime],
  optional: [IStatusBar, IToolbarWidgetRegistry],
  activate: (
    app: JupyterFrontEnd,
    openruntime: IOpenRuntime,
    statusBar: IStatusBar | null,
    toolbars: IToolbarWidgetRegistry | null
  ) => {
    const { connection, settings } = openruntime;
    const create = () => new StatusLine(openruntime, () => void app.commands.execute(CommandIDs.togglePanel));
    if (statusBar) {
      const activeStateChanged = new Signal<object, void>({});
      connection.changed.add(() => activeStateChanged.emit());
      settings.changed.add(() => activeStateChanged.emit());
      statusBar.registerStatusItem(statusPlugin.id, {
        item: create(),
        align: 'left',
        rank: 3,
        isActive: () => settings.showStatus && connection.state !== 'absent',
        activeStateChanged
      });
    }
    // Notebook 7 has no status bar.
    toolbars?.addFactory('TopBar', 'openruntime-status', () => (statusBar ? new Widget() : create()));
  }
};
