/* Runs once, when the drop zone enters the page: files dropped anywhere on the page, or chosen in
   the zone, go one after the other through the upload field that viser itself put there. */
(() => {
  const zone = document.getElementById("escherjax-zone");
  const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
  let last = Promise.resolve();
  const sendOne = async (file) => {
    const field = document.querySelector('div > input[type=file][accept="ACCEPT"]');
    const one = new DataTransfer();
    one.items.add(file);
    field.files = one.files;
    field.dispatchEvent(new Event("change", { bubbles: true }));
    do await pause(100);
    while (field.isConnected && field.nextElementSibling.disabled); /* viser's button, till sent */
  };
  const send = (files) => {
    for (const file of Array.from(files)) last = last.then(() => sendOne(file));
  };
  zone.querySelector("input").onchange = (event) => {
    send(event.target.files);
    event.target.value = "";
  };
  window.ondragover = (event) => {
    event.preventDefault();
    zone.classList.add("escherjax-over");
  };
  window.ondragleave = () => zone.classList.remove("escherjax-over");
  window.ondrop = (event) => {
    event.preventDefault();
    zone.classList.remove("escherjax-over");
    send(event.dataTransfer.files);
  };
})();
