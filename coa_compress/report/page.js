// A slider for each row of pictures: the right image is uncovered from the left edge.
for (const row of document.querySelectorAll(".picture")) {
  const shots = [...row.querySelectorAll(".shots img")], box = row.querySelector(".compare");
  if (!box || shots.length < 2) continue;
  const [under, over] = box.querySelectorAll("img"), [first, second] = box.querySelectorAll("select");
  const show = (image, select) => { for (const name of ["src", "alt"]) image.setAttribute(name, shots[select.value].getAttribute(name)); };
  for (const [image, select] of [[over, first], [under, second]]) {
    select.addEventListener("change", () => show(image, select));
    show(image, select);
  }
  const range = box.querySelector("input");
  const move = () => box.style.setProperty("--at", range.value + "%");
  range.addEventListener("input", move);
  box.hidden = false;
  move();
}
