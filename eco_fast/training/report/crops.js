"use strict";
// A divider over two versions of a crop: the range below it moves it, by keys too, and so does a pointer on the crop.
document.documentElement.classList.add("alive");
for (const crop of document.querySelectorAll(".crop")) {
  const stage = crop.querySelector(".stage");
  const divider = crop.querySelector("input");
  const sides = [...crop.querySelectorAll("select")];
  const panels = [...stage.querySelectorAll("figure")];
  const show = () => {
    panels.forEach((panel, place) => {
      panel.classList.toggle("left", sides[0].selectedIndex === place);
      panel.classList.toggle("right", sides[1].selectedIndex === place);
    });
    stage.style.setProperty("--at", divider.value + "%");
  };
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    divider.value = Math.round(100 * (event.clientX - box.left) / box.width);
    show();
  };
  stage.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    divider.focus();
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  divider.addEventListener("input", show);
  for (const side of sides) side.addEventListener("change", show);
  show();
}
