/* Browsers start no worker from file://, and the search of a page opened from disk needs one. There, `Worker` becomes a
   hidden frame that runs the same script and speaks the same messages; elsewhere nothing changes. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      window.addEventListener("message", (event) => {
        if (event.source !== this.inside) return;
        this.dispatchEvent(new MessageEvent("message", { data: event.data }));
      });
      this.ready = new Promise((done) => {
        this.inside.ready = done;
      });
      const page = this.inside.document;
      page.open();
      page.write(
        "<script>postMessage = (data) => parent.postMessage(data, '*');" +
          "importScripts = (...urls) => urls.forEach((u) => document.write('<script src=\"' + u + '\"><\\/script>'));" +
          `</script><script src="${url}" onload="ready()"></script>`
      );
      page.close();
    }
    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) })));
    }
  };
}
