/** A helper thread of decoder.js: a module worker in a browser, a worker thread in Node. */

const port = typeof self === 'undefined' ? (await import('node:worker_threads')).parentPort : self;

async function start({ module, memory, model, stack, thread }) {
  const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
  exports.__stack_pointer.value = stack;
  port.postMessage('ready');
  try {
    exports.help(model, thread); // returns when the decoder is disposed
  } catch {
    exports.fail(model);
  }
  port.close();
}

if (port.on) port.once('message', start);
else port.onmessage = (event) => start(event.data);
