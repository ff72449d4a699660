// The dashboard in a side panel, and in JupyterLab also in a tab of the main area.

import { ILabShell, ILayoutRestorer, JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette, MainAreaWidget, WidgetTracker } from '@jupyterlab/apputils';
import { ILauncher } from '@jupyterlab/launcher';
import { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { IRenderMime } from '@jupyterlab/rendermime-interfaces';
import { Panel, Widget } from '@lumino/widgets';

import { ITask } from './api';
import { Connection } from './connection';
import { DashboardModel, Feed } from './feed';
import { queueIcon } from './icon';
import { CommandIDs, IOpenRuntime, NAME } from './runtime';

const DASHBOARD_MIME_TYPE = 'application/vnd.openruntime.dashboard+json';
const CATEGORY = 'OpenRuntime';

/** URL of the folder of the bundle, which the builder sets. */
declare const __webpack_public_path__: string;

interface IDashboardModule {
  default: { render(options: { model: DashboardModel; el: HTMLElement }): () => void };
  /** Submit a task again. `request` sends a request to the API. */
  runAgain(request: (method: string, path: string, body?: unknown) => Promise<any>, taskId: string): Promise<ITask>;
}

/** Load the module of the dashboard, which the widget of notebooks also uses. It is loaded when a dashboard is first shown. */
function loadModule(): Promise<IDashboardModule> {
  return import(/* webpackIgnore: true */ `${__webpack_public_path__}dashboard.js`);
}

/** Submit a task again, and return the new one. */
export async function runAgain(connection: Connection, taskId: string): Promise<ITask> {
  const { runAgain } = await loadModule();
  return runAgain((method, path, body) => connection.request(method, path, body), taskId);
}

/** The dashboard as a widget of Lumino. While it is hidden it requests nothing. */
class Dashboard extends Widget {
  constructor(feed: Feed, where: string) {
    super();
    this.addClass('jp-OpenRuntime-dashboard');
    this.title.icon = queueIcon;
    this.title.caption = 'OpenRuntime: tasks of all notebooks';
    this.#model = new DashboardModel(feed, where);
  }

  /** Show a task with its details, as soon as the dashboard is shown. */
  select(taskId: string): void {
    this.#model.set('selected', taskId);
  }

  protected override onAfterShow(): void {
    void this.#mount();
  }

  protected override onAfterAttach(): void {
    if (this.isVisible) {
      void this.#mount();
    }
  }

  protected override onBeforeHide(): void {
    this.#unmount();
  }

  protected override onBeforeDetach(): void {
    this.#unmount();
  }

  async #mount(): Promise<void> {
    if (this.#mounted) {
      return;
    }
    this.#mounted = true;
    let loaded: IDashboardModule;
    try {
      loaded = await loadModule();
    } catch (error) {
      this.#mounted = false;
      this.node.textContent = `The dashboard cannot be loaded: ${error}. Reload the page.`;
      return;
    }
    if (this.#mounted && !this.#remove) {
      this.node.replaceChildren();
      this.#remove = loaded.default.render({ model: this.#model, el: this.node });
    }
  }

  #unmount(): void {
    this.#mounted = false;
    this.#remove?.();
    this.#remove = null;
    this.node.replaceChildren();
  }

  readonly #model: DashboardModel;
  #mounted = false;
  #remove: (() => void) | null = null;
}

/** A dashboard in a saved notebook: the one of this page if it has the same runtime, and the saved figures otherwise. */
class SavedDashboard extends Panel implements IRenderMime.IRenderer {
  constructor(connection: Connection, rendermime: IRenderMimeRegistry, create: () => Dashboard) {
    super();
    this.#connection = connection;
    this.#rendermime = rendermime;
    this.#create = create;
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    await this.#connection.answered;
    this.widgets.forEach(widget => widget.dispose());
    const { runtime } = model.data[DASHBOARD_MIME_TYPE] as { runtime: string };
    if (runtime === this.#connection.runtime) {
      this.addWidget(this.#create());
    } else {
      const saved = this.#rendermime.createRenderer('text/html');
      this.addWidget(saved);
      await saved.renderModel(model);
    }
  }

  readonly #connection: Connection;
  readonly #rendermime: IRenderMimeRegistry;
  readonly #create: () => Dashboard;
}

export const dashboardPlugin: JupyterFrontEndPlugin<void> = {
  id: `${NAME}:dashboard`,
  description: 'Adds the dashboard as a side panel and as a tab.',
  autoStart: true,
  requires: [IOpenRuntime, IRenderMimeRegistry],
  optional: [ILabShell, ILayoutRestorer, ICommandPalette, ILauncher],
  activate: (
    app: JupyterFrontEnd,
    { connection, feed }: IOpenRuntime,
    rendermime: IRenderMimeRegistry,
    labShell: ILabShell | null,
    restorer: ILayoutRestorer | null,
    palette: ICommandPalette | null,
    launcher: ILauncher | null
  ) => {
    const { commands, shell } = app;
    const present = () => connection.state !== 'absent';

    const create = () => new Dashboard(feed, app.serviceManager.serverSettings.baseUrl);

    const createRenderer = () => new SavedDashboard(connection, rendermime, create);
    rendermime.addFactory({ safe: true, mimeTypes: [DASHBOARD_MIME_TYPE], createRenderer }, 40); // before text/html

    const panel = create();
    panel.id = 'openruntime-panel';
    shell.add(panel, 'right', { rank: 650, type: 'OpenRuntime' });
    restorer?.add(panel, panel.id);
    connection.changed.add(() => {
      commands.notifyCommandChanged();
      if (!present() && !panel.isDisposed) {
        panel.dispose();
      }
    });

    commands.addCommand(CommandIDs.togglePanel, {
      label: 'OpenRuntime Tasks',
      caption: 'Show or hide the tasks of this machine',
      icon: queueIcon,
      isToggleable: true,
      isToggled: () => panel.isVisible,
      isEnabled: present,
      isVisible: present,
      execute: ({ task }) => {
        if (typeof task === 'string') {
          panel.select(task);
        }
        if (panel.isVisible && !task) {
          // Both shells have this method, and no common interface with it.
          (shell as unknown as { collapseRight?(): void }).collapseRight?.();
        } else {
          shell.activateById(panel.id);
        }
      }
    });
    palette?.addItem({ command: CommandIDs.togglePanel, category: CATEGORY });
    if (!labShell) {
      return; // Notebook 7 shows one main widget.
    }

    const tracker = new WidgetTracker<MainAreaWidget<Dashboard>>({ namespace: 'openruntime-dashboard' });
    commands.addCommand(CommandIDs.openDashboard, {
      label: 'OpenRuntime Dashboard',
      caption: 'Devices, charts and tasks of this machine',
      icon: queueIcon,
      isEnabled: present,
      isVisible: present,
      execute: () => {
        let tab = tracker.currentWidget;
        if (!tab || tab.isDisposed) {
          tab = new MainAreaWidget({ content: create() });
          tab.id = 'openruntime-dashboard';
          tab.title.label = 'OpenRuntime';
          tab.title.icon = queueIcon;
          labShell.add(tab, 'main', { type: 'OpenRuntime' });
          void tracker.add(tab);
        }
        labShell.activateById(tab.id);
      }
    });
    void restorer?.restore(tracker, { command: CommandIDs.openDashboard, name: () => 'dashboard' });
    palette?.addItem({ command: CommandIDs.openDashboard, category: CATEGORY });
    const tile = launcher?.add({ command: CommandIDs.openDashboard, category: 'Other', rank: 3 });
    connection.changed.add(() => present() || tile?.dispose());
  }
};
