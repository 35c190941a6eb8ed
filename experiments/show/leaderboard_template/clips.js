// Videos of one prompt, in step, and their difference to the baseline's -------------------------------------------------

for (const box of document.querySelectorAll(".clips")) {
  const article = box.closest("article");
  const clip = data.families[article.dataset.family].clip;
  const figures = [...box.querySelectorAll("figure")];
  const videos = figures.map((figure) => figure.querySelector("video"));
  const own = figures.findIndex((figure) => figure.dataset.method === clip.baseline);
  const [play, slider, difference] = [".play", ".frame-number", ".difference"].map((each) => article.querySelector(each));
  for (const video of videos) video.controls = false;
  article.querySelector(".player").hidden = false;
  difference.parentNode.hidden = own < 0;

  const draw = () => {
    figures.forEach((figure, i) => {
      const canvas = figure.querySelector("canvas");
      const shown = difference.checked && i !== own;
      canvas.hidden = !shown;
      videos[i].hidden = shown;
      if (!shown || videos[i].readyState < 2 || videos[own].readyState < 2) return;
      const [w, h] = [videos[i].videoWidth, videos[i].videoHeight];
      if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
      const context = canvas.getContext("2d");
      context.globalCompositeOperation = "copy";
      context.drawImage(videos[i], 0, 0, w, h);
      context.globalCompositeOperation = "difference";
      context.drawImage(videos[own], 0, 0, w, h);
    });
  };
  const seek = (frame) => {
    slider.value = frame;
    for (const video of videos) video.currentTime = (Number(frame) + 0.5) / clip.fps;
  };
  const pause = () => {
    play.textContent = "Play";
    for (const video of videos) video.pause();
    seek(slider.value);
  };
  const follow = () => {
    if (play.textContent === "Play") return;
    const [leader, ...others] = videos;
    for (const video of others) if (Math.abs(video.currentTime - leader.currentTime) > 1.5 / clip.fps) video.currentTime = leader.currentTime;
    slider.value = Math.floor(leader.currentTime * clip.fps);
    draw();
    if (leader.ended) {
      slider.value = 0;
      pause();
    } else requestAnimationFrame(follow);
  };
  play.addEventListener("click", () => {
    if (play.textContent === "Pause") return pause();
    if (Number(slider.value) >= clip.frames - 1) seek(0);
    play.textContent = "Pause";
    for (const video of videos) video.play().catch(() => {}); // a pause that comes first is no failure
    requestAnimationFrame(follow);
  });
  slider.addEventListener("input", () => (play.textContent === "Pause" ? pause() : seek(slider.value)));
  difference.addEventListener("change", draw);
  for (const video of videos) for (const event of ["seeked", "loadeddata"]) video.addEventListener(event, draw);
  seek(clip.first);
}
