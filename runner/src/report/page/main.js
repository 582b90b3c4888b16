'use strict';
(() => {
const page = document.getElementById('page');
const draw = all => {
  page.replaceChildren(...all.runs.map(run => {
    const section = document.createElement('section');
    const title = section.appendChild(document.createElement('h2'));
    title.textContent = run.name;
    for (const curve of run.curves) {
      const line = section.appendChild(document.createElement('p'));
      const last = curve.value.length - 1;
      line.textContent = `${curve.event}.${curve.key}: ${curve.value[last]} after step ${curve.step[last]}`;
    }
    return section;
  }));
};
draw(JSON.parse(document.getElementById('data').textContent));
if (document.body.dataset.live) {
  const state = page.before(document.createElement('p')) || page.previousElementSibling;
  const poll = async () => {
    try {
      const answer = await fetch('./api/runs.json', { cache: 'no-store' });
      if (!answer.ok) throw new Error(answer.statusText);
      draw(await answer.json());
      state.textContent = 'live';
    } catch {
      state.textContent = 'connection lost';
    }
    setTimeout(poll, 2000);
  };
  poll();
}
})();
