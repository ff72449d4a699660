// The runtime of the page's server, shared by the plugins of this extension.

import { Token } from '@lumino/coreutils';
import { Connection } from './connection';
import { Feed } from './feed';
import { Settings } from './settings';

export const NAME = 'openruntime-jupyter';

export const CommandIDs = {
  togglePanel: 'openruntime:toggle-panel',
  openDashboard: 'openruntime:open-dashboard',
  runCellAsTask: 'openruntime:run-cell-as-task'
};

export interface IOpenRuntime {
  readonly connection: Connection;
  /** Data of the dashboards. */
  readonly feed: Feed;
  readonly settings: Settings;
}

export const IOpenRuntime = new Token<IOpenRuntime>(`${NAME}:IOpenRuntime`, 'The connection of the page to the runtime of its server.');
