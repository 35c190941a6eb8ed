// Videos: one slider and one button drive all of them ----------------------------------------------------------------

if (data.clips.length) {
  const CRISP = 256; // videos narrower than this are shown with visible pixels, not blurred up
  const baseline = data.baseline;
  const state = { frame: data.first.frame, playing: false, videos: new Map() };
  const timeOf = (frame) => (frame + 0.5) / data.fps; // the middle of the frame: no rounding shows its neighbour
  const videos = () => [...state.videos.values()];
  const width = Number(getComputedStyle(document.body).getPropertyValue("--width"));
  document.body.classList.toggle("pixelated", width < CRISP);

  const showFrame = (frame) => {
    state.frame = frame;
    by("frame").value = frame;
    by("clock").value = `frame ${frame + 1} of ${data.frames}, ${(frame / data.fps).toFixed(2)} s`;
  };
  const seek = (frame) => {
    showFrame(frame);
    for (const video of videos()) video.currentTime = timeOf(frame);
  };
  const pause = () => {
    state.playing = false;
    by("play").textContent = "Play";
    for (const video of videos()) video.pause();
    seek(state.frame);
  };
  const follow = () => {
    if (!state.playing) return;
    const [leader, ...others] = videos();
    for (const video of others) {
      const drift = Math.abs(video.currentTime - leader.currentTime);
      if (drift > 1.5 / data.fps && !video.seeking) video.currentTime = leader.currentTime;
    }
    showFrame(Math.min(data.frames - 1, Math.floor(leader.currentTime * data.fps)));
    drawComparison();
    if (leader.ended) {
      seek(0);
      start();
    }
    requestAnimationFrame(follow);
  };
  const start = () => {
    for (const video of videos()) {
      video.playbackRate = Number(by("speed").value);
      video.play().catch(() => {}); // a pause that comes first is no failure
    }
  };
  const play = () => {
    if (!state.videos.size) return;
    if (state.frame >= data.frames - 1) seek(0);
    state.playing = true;
    by("play").textContent = "Pause";
    start();
    requestAnimationFrame(follow);
  };

  function drawComparison() {
    const [original, other] = [state.videos.get(baseline), state.videos.get(by("against").value)];
    if (!original || !other || original.readyState < 2 || other.readyState < 2) return;
    const canvas = by("canvas");
    const zoom = Math.max(1, Math.ceil(840 / original.videoWidth));
    const [w, h] = [original.videoWidth * zoom, original.videoHeight * zoom];
    if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = width >= CRISP;
    context.globalCompositeOperation = "copy";
    context.drawImage(other, 0, 0, w, h);
    const view = by("view").value;
    canvas.style.filter = view === "wipe" ? "" : `brightness(${view})`;
    if (view !== "wipe") {
      context.globalCompositeOperation = "difference";
      context.drawImage(original, 0, 0, w, h);
      return;
    }
    const edge = (w * by("wipe").value) / 100;
    context.globalCompositeOperation = "source-over";
    context.save();
    context.beginPath();
    context.rect(0, 0, edge, h);
    context.clip();
    context.drawImage(original, 0, 0, w, h);
    context.restore();
    context.fillStyle = "#000";
    context.fillRect(edge - w / 200, 0, w / 100, h);
    context.fillStyle = "#fff";
    context.fillRect(edge - w / 400, 0, w / 200, h);
  }

  const factsOf = (name, take) => {
    const facts = name === baseline ? ["the reference"] : [];
    if (take.share !== null) facts.push(`${percent(take.share)} of the compute`);
    if (take.another) facts.push(`another video than ${baseline}'s from the start`);
    if (take.psnr === "inf") facts.push(`identical to ${baseline}`);
    if (typeof take.psnr === "number") facts.push(`PSNR ${take.psnr.toFixed(2)} dB`);
    if (typeof take.ssim === "number") facts.push(`SSIM ${take.ssim.toFixed(4)}`);
    return facts.map((fact) => `<span>${fact}</span>`).join("");
  };

  function figureOf(name) {
    const take = clip().takes[name];
    const figure = document.createElement("figure");
    figure.innerHTML = `<figcaption>${chip(name)}${name}</figcaption><p class="note">${factsOf(name, take)}</p>`;
    const video = document.createElement(take.video ? "video" : "div");
    if (take.video) {
      Object.assign(video, { src: take.video, muted: true, playsInline: true, preload: "auto" });
      video.setAttribute("aria-label", `${name}: ${clip().prompt}`);
      for (const event of ["seeked", "loadeddata"]) video.addEventListener(event, drawComparison);
      state.videos.set(name, video);
    } else {
      Object.assign(video, { className: "missing", textContent: "no preview file" });
    }
    figure.querySelector("figcaption").after(video);
    return figure;
  }

  const clip = () => data.clips[by("clip").value];
  const shownNames = () => data.methods.filter((name) => clip().takes[name]);

  function showClip() {
    if (state.playing) pause();
    const names = shownNames();
    state.videos.clear();
    by("takes").replaceChildren(...names.map(figureOf));
    const others = names.filter((name) => name !== baseline && state.videos.has(name));
    const before = by("against").value;
    const optionOf = (name) => `<option${name === before ? " selected" : ""}>${name}</option>`;
    by("against").innerHTML = others.map(optionOf).join("");
    if (!others.includes(before)) by("against").selectedIndex = others.length - 1;
    document.querySelector(".compare").hidden = !others.length || !state.videos.has(baseline);
    by("map-prompt").textContent =
      `Of the prompt chosen above, “${clip().prompt}”, seed ${clip().seed}, from its trace. ` +
      "A row is one step of the whole process, which advances every chunk that is active.";
    const anyHas = (letter) =>
      names.some((name) => clip().takes[name].map?.some((chunk) => chunk.letters.includes(letter)));
    by("forecast-key").hidden = !anyHas("f");
    by("held-key").hidden = !anyHas("h");
    describeComparison();
    seek(state.frame);
  }

  function describeComparison() {
    const wipe = by("view").value === "wipe";
    by("wipe-label").hidden = !wipe;
    by("compare-note").textContent = wipe
      ? `Left of the line ${baseline}, right of it ${by("against").value}. Drag in the picture, or use the slider.`
      : `Black where ${by("against").value} shows what ${baseline} shows.`;
    drawComparison();
  }

  data.clips.forEach((each, i) => by("clip").add(new Option(`${each.prompt} (seed ${each.seed})`, i)));
  by("clip").value = data.first.clip;
  showClip();
  const drawMaps = drawToFit(by("reuse"), (wide) => {
    by("reuse").innerHTML = shownNames().map((name) => mapOf(name, clip().takes[name], wide)).join("");
  });
  tellMaps(() => clip().takes);

  by("clip").addEventListener("change", () => {
    showClip();
    drawMaps();
  });
  by("play").addEventListener("click", () => (state.playing ? pause() : play()));
  by("frame").addEventListener("input", (event) => {
    const frame = Number(event.target.value);
    if (state.playing) pause();
    seek(frame);
  });
  by("speed").addEventListener("change", () => {
    for (const video of videos()) video.playbackRate = Number(by("speed").value);
  });
  by("wipe").addEventListener("input", drawComparison);
  for (const id of ["against", "view"]) by(id).addEventListener("change", describeComparison);
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = by("canvas").getBoundingClientRect();
    by("wipe").value = ((event.clientX - box.left) / box.width) * 100;
    drawComparison();
  };
  for (const event of ["pointerdown", "pointermove"]) by("canvas").addEventListener(event, drag);
}
