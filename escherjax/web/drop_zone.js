/* Runs once, when the drop zone enters the page: files dropped anywhere on the page, or chosen in
   the zone, go one by one through the upload field that viser itself put there. */
(() => {
  const zone = document.getElementById("escherjax-zone");
  const send = (files) => {
    const field = document.querySelector('input[type=file][accept="ACCEPT"]');
    for (const file of files) {
      const one = new DataTransfer();
      one.items.add(file);
      field.files = one.files;
      field.dispatchEvent(new Event("change", { bubbles: true }));
    }
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
