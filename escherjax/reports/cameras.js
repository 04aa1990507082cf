// Cameras of scenes as plots to turn, beside thumbnails of their views.

const add = (a, b, s) => a.map((x, i) => x + s * b[i]);

function showCameras(box, part) {
  for (const scene of part.scenes) showCameraScene(make(box, "article", "scene cameras"), scene);
}

function showCameraScene(box, scene) {
  make(box, "h3", "", scene.id);
  make(box, "p", "about", scene.about);
  for (const text of scene.warnings) make(box, "p", "fault", "\u26a0 " + text);
  const row = make(box, "div", "row"), canvas = make(row, "canvas");
  canvas.tabIndex = 0;
  const thumbs = make(row, "div", "thumbs"), plot = new Plot(canvas, scene.views);
  const figures = scene.views.map((view, i) => {
    const figure = make(thumbs, "figure", view.outlier ? "outlier" : "");
    addPicture(figure, view.picture, "view " + view.view);
    const distance = view.epipolar === null ? "?" : `${view.epipolar} px`;
    const known = view.epipolar === undefined ? "" : `: ${distance}`;
    make(figure, "figcaption", "", view.view + known);
    figure.onmouseenter = () => highlight(i, false);
    figure.onmouseleave = () => highlight(-1, false);
    return figure;
  });
  const highlight = (index, scroll) => {
    if (index === plot.hovered) return;
    plot.hovered = index;
    figures.forEach((figure, i) => figure.classList.toggle("on", i === index));
    if (scroll && index >= 0) {
      const top = figures[index].offsetTop - thumbs.offsetTop;
      if (top < thumbs.scrollTop || top + 60 > thumbs.scrollTop + thumbs.clientHeight) thumbs.scrollTop = top;
    }
    plot.show();
  };
  canvas.onpointerdown = event => canvas.setPointerCapture(event.pointerId);
  canvas.onpointermove = event => {
    if (event.buttons & 1) {
      plot.azimuth -= 0.01 * event.movementX;
      plot.elevation = Math.min(1.57, Math.max(-1.57, plot.elevation + 0.01 * event.movementY));
      plot.show();
    } else highlight(plot.nearest(event.offsetX, event.offsetY), true);
  };
  canvas.onpointerleave = () => highlight(-1, false);
  canvas.ondblclick = () => { plot.reset(); plot.show(); };
  canvas.addEventListener("wheel", event => {
    if (document.activeElement !== canvas) return;  // else the page could not be scrolled
    event.preventDefault();
    plot.zoom *= Math.exp(-0.0015 * event.deltaY);
    plot.show();
  }, { passive: false });
  plot.show();
}

// The eye turns about the origin of the world, z always upwards on the screen.
class Plot {
  constructor(canvas, views) {
    this.canvas = canvas;
    this.views = views;
    this.reach = Math.max(1e-6, ...views.map(v => Math.hypot(...v.at)));
    this.frustum = 0.16 * this.reach;
    this.hovered = -1;
    this.reset();
  }
  reset() { this.azimuth = -0.9; this.elevation = 0.45; this.zoom = 1; }

  screen(p) {  // world point -> [u, v, distance from the eye's plane]
    const ca = Math.cos(this.azimuth), sa = Math.sin(this.azimuth);
    const ce = Math.cos(this.elevation), se = Math.sin(this.elevation);
    const x = -sa * p[0] + ca * p[1], towards = ca * p[0] + sa * p[1];
    const y = ce * p[2] - se * towards, depth = 5 * this.reach - (ce * towards + se * p[2]);
    const s = this.zoom * 2.0 * this.canvas.clientHeight / Math.max(depth, 0.1 * this.reach);
    return [this.canvas.clientWidth / 2 + s * x, this.canvas.clientHeight / 2 - s * y, depth];
  }
  line(points, color, width = 1) {
    const c = this.context;
    c.beginPath();
    for (const p of points) { const [u, v] = this.screen(p); c.lineTo(u, v); }
    c.strokeStyle = color; c.lineWidth = width; c.stroke();
  }
  label(p, text, color) {
    const [u, v] = this.screen(p);
    this.context.fillStyle = color;
    this.context.fillText(text, u + 4, v - 4);
  }
  camera(v, on) {
    const f = this.frustum, span = Math.max(...v.corners.map(Math.abs));
    const d = f / Math.max(1, span);  // wide lenses: no larger on the screen
    const corner = (x, y) => add(add(add(v.at, v.forward, d), v.right, d * x), v.down, d * y);
    const [l, t, r, b] = v.corners;
    const ring = [corner(l, t), corner(r, t), corner(r, b), corner(l, b)];
    const color = on ? "#f08000" : v.outlier ? "#d00000" : "#4a7fb5", width = on ? 2.5 : 1;
    this.line([...ring, ring[0]], color, width);
    for (const p of ring) this.line([v.at, p], color, width);
    this.line([v.at, add(v.at, v.forward, 1.9 * f)], "#e07000", on ? 3 : 1.5);
    const top = corner((l + r) / 2, t);
    this.line([top, add(top, v.down, -0.55 * f)], "#a000a0", on ? 3 : 2);
    if (on || this.views.length <= 30) this.label(v.at, String(v.view), on ? "#c06000" : "#555");
  }
  show() {
    const scale = window.devicePixelRatio || 1, { clientWidth: w, clientHeight: h } = this.canvas;
    this.canvas.width = w * scale; this.canvas.height = h * scale;
    const c = this.context = this.canvas.getContext("2d");
    c.scale(scale, scale);
    c.font = "12px system-ui, sans-serif";
    const R = this.reach;
    for (let i = -4; i <= 4; i++) {
      this.line([[i * R / 4, -R, 0], [i * R / 4, R, 0]], "#e4e4e4");
      this.line([[-R, i * R / 4, 0], [R, i * R / 4, 0]], "#e4e4e4");
    }
    [["x", "#d22"], ["y", "#292"], ["z", "#22d"]].forEach(([name, color], i) => {
      const tip = [0, 0, 0]; tip[i] = 0.5 * R;
      this.line([[0, 0, 0], tip], color, 2.5);
      this.label(tip, name, color);
    });
    const far = v => this.screen(v.at)[2];
    const order = this.views.map((v, i) => i).sort((a, b) => far(this.views[b]) - far(this.views[a]));
    for (const i of order) if (i !== this.hovered) this.camera(this.views[i], false);
    if (this.hovered >= 0) this.camera(this.views[this.hovered], true);
  }
  nearest(u, v) {  // the camera under the pointer, by its centre or the centre of its outline
    let best = -1, least = 18;
    this.views.forEach((view, i) => {
      for (const p of [view.at, add(view.at, view.forward, this.frustum)]) {
        const [x, y] = this.screen(p), d = Math.hypot(x - u, y - v);
        if (d < least) { least = d; best = i; }
      }
    });
    return best;
  }
}
