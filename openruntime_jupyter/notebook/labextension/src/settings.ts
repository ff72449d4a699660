// Settings of the user, with their defaults until they are loaded.

import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { Listeners } from './listeners';

export class Settings {
  /** Emitted when a setting changes. */
  readonly changed = new Listeners<void>();
  /** Show the status line. */
  showStatus = true;
  /** Notify of tasks that ran at least this long, in seconds; 0: never. */
  notifyAfter = 30;
  /** Show the progress of a notebook's newest task in the title of its tab. */
  progressInTitle = true;

  /** Load the settings, and follow their changes. */
  async load(registry: ISettingRegistry, plugin: string): Promise<void> {
    const settings = await registry.load(plugin);
    const read = () => {
      this.showStatus = settings.get('showStatus').composite as boolean;
      this.notifyAfter = settings.get('notifyAfter').composite as number;
      this.progressInTitle = settings.get('progressInTitle').composite as boolean;
      this.changed.emit();
    };
    settings.changed.connect(read);
    read();
  }
}
