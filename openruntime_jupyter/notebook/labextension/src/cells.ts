// The command that runs a cell as a task.

import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { INotebookTracker, NotebookActions, NotebookPanel } from '@jupyterlab/notebook';
import { Kernel, KernelMessage } from '@jupyterlab/services';

import { queueIcon } from './icon';
import { CommandIDs, IOpenRuntime, NAME } from './runtime';

const MAGIC = '%%openruntime';

/** Load the magics in the kernel, and return the options for the variables that the code uses and sets: `--in size --out total`. */
async function prepare(kernel: Kernel.IKernelConnection, source: string): Promise<string> {
  const options = `__import__("importlib").import_module("openruntime_jupyter.notebook.run.names").options(${JSON.stringify(source)})`;
  const future = kernel.requestExecute({
    code: '%load_ext openruntime_jupyter',
    silent: true,
    store_history: false,
    user_expressions: { options }
  });
  const { content } = (await future.done) as KernelMessage.IExecuteReplyMsg;
  const result = content.status === 'ok' ? (content.user_expressions.options as any) : null;
  // The text is a Python literal of identifiers and options.
  return result?.status === 'ok' ? String(result.data['text/plain']).slice(1, -1) : '';
}

/** Make the cell of the context menu the active one: a click with the right button selects none. */
function activateClicked(app: JupyterFrontEnd, panel: NotebookPanel): void {
  const clicked = app.contextMenuHitTest(node => node.classList.contains('jp-CodeCell'));
  const index = panel.content.widgets.findIndex(cell => cell.node === clicked);
  if (index >= 0) {
    panel.content.deselectAll();
    panel.content.activeCellIndex = index;
  }
}

async function runActiveCell(panel: NotebookPanel): Promise<void> {
  const cell = panel.content.activeCell;
  const kernel = panel.sessionContext.session?.kernel;
  if (cell?.model.type !== 'code' || !kernel) {
    return;
  }
  const { sharedModel } = cell.model;
  const source = sharedModel.getSource();
  const options = await prepare(kernel, source);
  if (!source.trimStart().startsWith(MAGIC)) {
    sharedModel.setSource([`${MAGIC} ${options}`.trimEnd(), source].join('\n'));
  }
  await NotebookActions.run(panel.content, panel.sessionContext);
}

export const cellsPlugin: JupyterFrontEndPlugin<void> = {
  id: `${NAME}:cells`,
  description: 'Adds the command that runs a cell as a task.',
  autoStart: true,
  requires: [IOpenRuntime],
  optional: [INotebookTracker, ICommandPalette],
  activate: (app: JupyterFrontEnd, { connection }: IOpenRuntime, notebooks: INotebookTracker | null, palette: ICommandPalette | null) => {
    if (!notebooks) {
      return;
    }
    const { commands } = app;
    commands.addCommand(CommandIDs.runCellAsTask, {
      label: 'Run Cell as OpenRuntime Task',
      caption: `Write ${MAGIC} above the code, and run the cell in a worker process`,
      icon: queueIcon,
      isEnabled: () => notebooks.activeCell?.model.type === 'code' && Boolean(notebooks.currentWidget?.sessionContext.session?.kernel),
      isVisible: () => connection.state !== 'absent',
      execute: async () => {
        const panel = notebooks.currentWidget;
        if (panel) {
          activateClicked(app, panel);
          await runActiveCell(panel);
        }
      }
    });
    notebooks.activeCellChanged.connect(() => commands.notifyCommandChanged(CommandIDs.runCellAsTask));
    palette?.addItem({ command: CommandIDs.runCellAsTask, category: 'OpenRuntime' });
  }
};
