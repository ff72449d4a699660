// OpenRuntime in JupyterLab and Notebook 7: the plugins of the extension.

import { JupyterFrontEnd, JupyterFrontEndPlugin, JupyterLab } from '@jupyterlab/application';
import { ISettingRegistry } from '@jupyterlab/settingregistry';

import { cellsPlugin } from './cells';
import { Connection } from './connection';
import { dashboardPlugin } from './dashboard';
import { Feed } from './feed';
import { noticesPlugin } from './notices';
import { outputPlugin } from './output';
import { runningPlugin } from './running';
import { IOpenRuntime, NAME } from './runtime';
import { Settings } from './settings';
import { statusPlugin } from './status';
import { addStyle } from './style';
import { titlesPlugin } from './titles';

const plugin: JupyterFrontEndPlugin<IOpenRuntime> = {
  id: `${NAME}:plugin`,
  description: 'Connects the page to the runtime of its server.',
  autoStart: true,
  provides: IOpenRuntime,
  optional: [ISettingRegistry, JupyterLab.IInfo],
  activate: (app: JupyterFrontEnd, registry: ISettingRegistry | null, info: JupyterLab.IInfo | null) => {
    addStyle();
    const { baseUrl, wsUrl, token } = app.serviceManager.serverSettings;
    const connection = new Connection({
      baseUrl: baseUrl.replace(/\/?$/, '/openruntime/'),
      webSocketUrl: wsUrl.replace(/\/?$/, '/openruntime/ws'),
      token,
      reachable: () => info?.isConnected !== false
    });
    const settings = new Settings();
    if (registry) {
      settings.load(registry, plugin.id).catch(error => console.warn('OpenRuntime: the settings cannot be loaded, so the defaults apply', error));
    }
    void app.restored.then(() => connection.open());
    return { connection, feed: new Feed(connection), settings };
  }
};

export default [plugin, statusPlugin, dashboardPlugin, outputPlugin, noticesPlugin, runningPlugin, cellsPlugin, titlesPlugin];
