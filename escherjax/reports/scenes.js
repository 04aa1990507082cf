// Pictures of evaluated scenes: references, true views, samples and error maps.

const decimals = name => (name === "psnr" ? 2 : 4);
const scoreText = scores => Object.entries(scores)
  .map(([name, value]) => `${name.toUpperCase()} ${value.toFixed(decimals(name))}`).join("  ");

function showRamp(box, part) {
  const note = make(box, "p", "note", "Error: absolute difference, mean over RGB, 0");
  make(note, "span", "ramp");
  note.append(`${part.full} or more, where 1 is black against white.`);
}

// Pictures are put into the page when their scene comes near the window.
function showScenes(box, part, data) {
  const zoom = makeZoom(box, data.images);
  const watcher = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) {
      watcher.unobserve(entry.target);
      entry.target.start();
    }
  }, { rootMargin: "800px" });
  for (const scene of data.scenes) {
    const article = make(box, "article", "scene");
    const counts = Object.keys(scene.cases);
    article.start = () => showScene(article, scene, counts.at(-1), data.images, zoom);
    make(article, "h3", "", scene.id);
    watcher.observe(article);
  }
}

function addPicture(parent, source, about) {
  const image = make(parent, "img");
  image.src = source; image.alt = about;
  return image;
}

function showScene(box, scene, count, images, zoom) {
  const one = scene.cases[count], shown = one.targets.length;
  box.replaceChildren();
  const head = make(box, "div", "scenehead");
  make(head, "h3", "", scene.id);
  const counts = make(head, "div", "counts", "references");
  for (const other of Object.keys(scene.cases)) {
    const button = make(counts, "button", "", other);
    button.setAttribute("aria-pressed", other === count);
    button.onclick = () => {
      showScene(box, scene, other, images, zoom);
      box.querySelector(".counts [aria-pressed=true]").focus();
    };
  }
  const more = shown < one.num_targets ? ` · ${shown} of ${one.num_targets} views shown` : "";
  make(head, "span", "mean", one.means + more);
  const strips = make(box, "div", "strips" + (one.side < 128 ? " small" : ""));
  const given = one.references.length;
  make(strips, "div", "label", given < count ? `first ${given} references` : "references");
  const references = make(strips, "div", "strip refs");
  one.references.forEach((index, i) => addPicture(references, images[index], "reference " + i));
  const hasTruth = one.targets[0].truth !== undefined;
  const labels = make(strips, "div", hasTruth ? "label column" : "label");
  for (const text of hasTruth ? ["true view", "sample", "error", ""] : ["sample"])
    make(labels, "div", "", text);
  const row = make(strips, "div", "strip");
  one.targets.forEach((target, place) => {
    const tile = make(row, "button", "tile"), view = target.view;
    tile.setAttribute("aria-label", `enlarge view ${view} of ${scene.id}`);
    if (hasTruth) addPicture(tile, images[target.truth], "true view " + view);
    addPicture(tile, images[target.sample], "sample of view " + view);
    if (hasTruth) addPicture(tile, images[target.error], "error of view " + view);
    const [name, value] = Object.entries(target.scores)[0] || [];
    const score = name && value.toFixed(decimals(name)) + (name === "psnr" ? " dB" : "");
    make(tile, "span", "", score || "view " + view);
    tile.onclick = () => zoom.show(scene, count, place);
  });
}

// The dialog that enlarges one view; keys go to other views and numbers of references.
function makeZoom(box, images) {
  const zoom = make(box, "dialog");
  zoom.setAttribute("aria-label", "One view enlarged");
  zoom.tabIndex = -1;
  let shown = null;  // {scene, count, place} of the enlarged view

  zoom.show = (scene, count, place) => {
    const one = scene.cases[count], target = one.targets[place];
    shown = { scene, count, place };
    zoom.replaceChildren();
    const head = make(zoom, "div", "dialoghead");
    make(head, "h3", "", scene.id);
    const given = `${count} reference${count === "1" ? "" : "s"}`;
    make(head, "span", "faint", `${given}, view ${target.view}, ${scoreText(target.scores)}`);
    make(head, "button", "", "close").onclick = () => zoom.close();
    const row = make(zoom, "div", "large" + (one.side < 128 ? " small" : ""));
    for (const kind of ["truth", "sample", "error"]) if (target[kind] !== undefined) {
      const name = kind === "truth" ? "true view" : kind, figure = make(row, "figure");
      const image = addPicture(figure, images[target[kind]], name);
      if (kind === "sample" && target.truth !== undefined) image.dataset.other = images[target.truth];
      make(figure, "figcaption", "", name);
    }
    const keys = make(zoom, "p", "note");
    for (const [key, use] of [["←", ""], ["→", "view"], ["↑", ""], ["↓", "number of references"],
      ["F", "hold to see the true view in the sample's place"], ["Esc", "close"]]) {
      make(keys, "kbd", "", key);
      keys.append(use ? ` ${use}\u2002 ` : " ");
    }
    if (!zoom.open) zoom.showModal();
    zoom.focus();  // what had it was replaced
  };

  const flip = on => {
    const image = zoom.querySelector("img[data-other]");
    if (!image || (image.dataset.own !== undefined) === on) return;
    if (on) {
      image.dataset.own = image.src;
      image.src = image.dataset.other;
    } else {
      image.src = image.dataset.own;
      delete image.dataset.own;
    }
  };
  zoom.onkeydown = event => {
    const { scene, count, place } = shown, counts = Object.keys(scene.cases);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const turn = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    const views = scene.cases[count].targets.length, at = counts.indexOf(count);
    if (event.key.toLowerCase() === "f") flip(true);
    if (step) zoom.show(scene, count, (place + step + views) % views);
    if (turn) zoom.show(scene, counts[(at + turn + counts.length) % counts.length], place);
    if (step || turn) event.preventDefault();
  };
  zoom.onkeyup = event => { if (event.key.toLowerCase() === "f") flip(false); };
  zoom.onclick = event => { if (event.target === zoom) zoom.close(); };
  return zoom;
}
