// What is told in words: the runs at a glance, samples of text, settings and how they differ.

const STATES = { done: 'finished', interrupted: 'interrupted' };

const swatch = run => html('i', { class: 'swatch', style: { '--line': run.colour } });

/** How a run stands, in a word; a run without an end is under way, or was killed. */
const stateOf = run =>
  run.end
    ? STATES[run.end.event] || run.end.event
    : run.starts.length
      ? 'not finished'
      : 'nothing reported yet';

/** One run at a glance. */
const card = run => {
  const mean = (event, name) => {
    const curve = run.curve(event, name);
    const values = curve ? (curve.mean || curve).value.filter(isNumber) : [];
    return values.length ? sum(values) / values.length : undefined;
  };
  const speed =
    run.done && run.tokensPerStep && run.starts.length === 1 && run.done.tokens / run.done.seconds;
  const facts = [
    ['Training loss', run.loss === undefined ? '–' : short(run.loss, 4), 'as reported last'],
    [
      'Best validation loss',
      run.best ? short(run.best.value, 4) : '–',
      run.best ? `after step ${whole(run.best.step)}` : 'no validation yet',
    ],
    [
      'Tokens',
      run.tokensPerStep ? short(run.step * run.tokensPerStep) : '–',
      run.tokensPerStep ? `${whole(run.tokensPerStep)} a step` : '',
    ],
    [
      'Time',
      duration(run.seconds),
      run.clock_is_estimate
        ? 'of steps, from their speed'
        : run.starts.length > 1
          ? `in ${run.starts.length} sessions`
          : 'of training',
    ],
    [
      'Tokens a second',
      short(mean('step', 'tokens_per_s')),
      speed ? `${short(speed)} with validations` : 'on average',
    ],
    [
      'Share of peak',
      percent(mean('step', 'mfu')),
      run.start.peak_gflops ? `of ${whole(run.start.peak_gflops)} GFLOP/s` : 'on average',
    ],
    [
      'Parameters',
      short(run.start.parameters),
      isNumber(run.start.threads) ? `${run.start.threads} worker${run.start.threads === 1 ? '' : 's'}` : '',
    ],
    [
      'Memory',
      run.start.planned_bytes ? bytes(run.start.planned_bytes.total) : '–',
      run.done && run.done.peak_rss_bytes ? `${bytes(run.done.peak_rss_bytes)} resident` : 'planned',
    ],
  ];
  const left = (run.seconds * (run.maxSteps - run.step)) / run.step;
  const open = run.end
    ? []
    : [
        ...(left > 0 ? [`${duration(left)} more at its speed`] : []),
        ...(run.modified ? [`last event ${new Date(1000 * run.modified).toLocaleString()}`] : []),
      ];
  const share = run.maxSteps ? Math.min(1, run.step / run.maxSteps) : 0;
  return html(
    'article',
    { class: 'card run' },
    html(
      'header',
      {},
      swatch(run),
      html('h3', {}, run.name),
      html('span', { class: `state ${run.end ? run.end.event : 'open'}` }, stateOf(run)),
    ),
    html(
      'div',
      { class: 'progress', role: 'img', 'aria-label': `${percent(share, 0)} of the steps` },
      html('span', { style: { width: `${100 * share}%`, '--line': run.colour } }),
    ),
    html(
      'p',
      { class: 'dim' },
      [`Step ${whole(run.step)}${run.maxSteps ? ` of ${whole(run.maxSteps)}` : ''}`, ...open].join(' · '),
    ),
    html(
      'dl',
      { class: 'facts' },
      facts.map(([name, value, more]) =>
        html('div', {}, html('dt', {}, name), html('dd', {}, value), html('dd', { class: 'dim' }, more)),
      ),
    ),
  );
};

/** The samples of a run, one at a time. */
const sampleCard = first => {
  let run = first;
  let at = run.samples.length - 1;
  const place = html('span', { class: 'dim' });
  const text = html('pre', { tabindex: 0 });
  const slider = html('input', {
    type: 'range',
    min: 0,
    'aria-label': `Sample of ${run.name}`,
    oninput: () => {
      at = Number(slider.value);
      show();
    },
  });
  const title = html('h3', {});
  const count = html('p', { class: 'note' });
  const root = html(
    'article',
    { class: 'card sample', 'data-run': run.name },
    html('header', {}, html('i', { class: 'swatch', style: { '--line': run.colour } }), title, place),
    slider,
    text,
    count,
  );
  const show = () => {
    const sample = run.samples[at];
    title.textContent = run.name;
    slider.hidden = run.samples.length < 2;
    slider.max = run.samples.length - 1;
    slider.value = at;
    const when = isNumber(sample.step) ? `after step ${whole(sample.step)}` : 'at the end';
    slider.setAttribute('aria-valuetext', when);
    place.textContent = `${when} · ${at + 1} of ${run.samples.length}`;
    const { prompt = '', text: words = '' } = sample;
    const begins = prompt && words.startsWith(prompt);
    text.replaceChildren(...(begins ? [html('b', {}, prompt), words.slice(prompt.length)] : [words]));
    count.hidden = run.samples_of === run.samples.length;
    count.textContent = `${run.samples.length} of the run’s ${run.samples_of} samples.`;
  };
  const update = now => {
    // Whoever looks at the newest wants to go on doing so.
    const isNewest = at === run.samples.length - 1;
    run = now;
    at = isNewest ? run.samples.length - 1 : Math.min(at, run.samples.length - 1);
    show();
  };
  show();
  return { root, update };
};

/** A table that scrolls by itself where it is too wide; `heads` may be false. */
const factTable = (heads, rows) =>
  html(
    'div',
    { class: 'scroll' },
    html(
      'table',
      { class: 'facts' },
      heads &&
        html(
          'thead',
          {},
          html(
            'tr',
            {},
            heads.map(head => html('th', head ? { scope: 'col' } : {}, head)),
          ),
        ),
      html('tbody', {}, rows),
    ),
  );

/** A table of what runs have under each name: `lists` has pairs of name and value for each run. */
const compared = (runs, lists, { onlyDifferent = false, sorted = false } = {}) => {
  const maps = lists.map(list => new Map(list));
  const names = [...new Set(lists.flatMap(list => list.map(([name]) => name)))];
  if (sorted) names.sort();
  const differs = name => maps.some(map => shown(map.get(name)) !== shown(maps[0].get(name)));
  const rows = names.filter(name => !onlyDifferent || differs(name));
  if (!rows.length) return null;
  return factTable(
    runs.length > 1 && ['', ...runs.map(run => [swatch(run), run.name])],
    rows.map(name =>
      html(
        'tr',
        { class: runs.length > 1 && !onlyDifferent && differs(name) ? 'differs' : null },
        html('th', { scope: 'row' }, html('code', {}, name)),
        maps.map(map => html('td', {}, shown(map.get(name)))),
      ),
    ),
  );
};

const without = (object, ...names) =>
  Object.fromEntries(Object.entries(object || {}).filter(([name]) => !names.includes(name)));
/** What a session said of itself, its settings apart. */
const startOf = run => without(run.start, 'event', 'config', 'step', 'environment');
/** A choice that comes with a value is one setting: `bpe:5000`. */
const settingsOf = run =>
  flat(
    Object.fromEntries(
      Object.entries(run.config).map(([name, value]) => {
        const inner =
          value && typeof value === 'object' && !Array.isArray(value) ? Object.entries(value) : [];
        const isChoice = inner.length === 1 && (inner[0][1] === null || typeof inner[0][1] !== 'object');
        return [
          name,
          !isChoice ? value : inner[0][0] === 'count' ? inner[0][1] : `${inner[0][0]}:${inner[0][1]}`,
        ];
      }),
    ),
  );
const environmentOf = run => {
  const told = run.start.environment || {};
  const { began, memory_bytes: memory, ...rest } = told;
  return [
    ...(isNumber(began) && began > 0
      ? [
          [
            'began',
            new Date(1000 * began)
              .toISOString()
              .replace('T', ' ')
              .replace(/\.\d+Z/, ' UTC'),
          ],
        ]
      : []),
    ...flat(rest),
    ...(isNumber(memory) ? [['memory', bytes(memory)]] : []),
    ...['isa', 'kernels', 'threads', 'peak_gflops', 'tuning']
      .filter(name => name in run.start)
      .map(name => [name, run.start[name]]),
  ];
};

/** What differs: settings, models, machines. Paths of the runs themselves always do. */
const differences = runs => {
  const told = runs.map(run => [
    ...settingsOf(run).filter(([name]) => !['out_dir', 'resume'].includes(name)),
    ...flat(run.start.model, 'model').filter(
      ([name]) => !(name.replace(/^model\./, '') in (run.config || {})),
    ),
    ...environmentOf(run)
      .filter(([name]) => !['began', 'peak_gflops', 'isa', 'threads', 'tuning'].includes(name))
      .map(([name, value]) => [`environment.${name}`, value]),
  ]);
  return compared(runs, told, { onlyDifferent: true });
};

/** A session or an event that is no curve, in a line. */
const history = runs => {
  const rows = runs.flatMap(run => [
    ...run.starts.map((start, n) => [
      run,
      start.step || 0,
      n ? 'resumed' : 'begun',
      [
        start.environment && start.environment.cpu,
        isNumber(start.threads) ? `${start.threads} workers` : '',
        start.kernels,
      ]
        .filter(Boolean)
        .join(', '),
    ]),
    ...run.threads.map(found => [
      run,
      found.step,
      'threads found',
      `${found.threads} of ` +
        (found.tried || []).map(t => `${t.threads} (${digits(1e3 * t.seconds, 4)} ms a step)`).join(', '),
    ]),
    ...(run.end
      ? [
          [
            run,
            run.end.steps ?? run.end.step,
            STATES[run.end.event] || run.end.event,
            run.end.checkpoint || '',
          ],
        ]
      : []),
    ...run.others.map(event => [
      run,
      event.step,
      event.event,
      JSON.stringify(without(event, 'event', 'step')),
    ]),
  ]);
  return factTable(
    ['Run', 'Step', 'What', 'More'],
    rows.map(([run, step, what, more]) =>
      html(
        'tr',
        {},
        html('td', {}, swatch(run), run.name),
        html('td', {}, isNumber(step) ? whole(step) : '–'),
        html('td', {}, what),
        html('td', {}, more),
      ),
    ),
  );
};

/** First, last, lowest and highest of each figure. */
const figures = runs => {
  const rows = runs.flatMap(run =>
    run.curves.map(curve => {
      const values = curve.value.filter(isNumber);
      const [low, high] = values.reduce(
        ([a, b], v) => [Math.min(a, v), Math.max(b, v)],
        [Infinity, -Infinity],
      );
      return html(
        'tr',
        {},
        html('td', {}, swatch(run), run.name),
        html('th', { scope: 'row' }, html('code', {}, `${curve.event}.${curve.key}`)),
        [curve.value[0], curve.value[curve.value.length - 1], low, high].map(value =>
          html('td', {}, isNumber(value) ? digits(value, 6) : '–'),
        ),
        html('td', {}, whole(curve.of)),
      );
    }),
  );
  return factTable(['Run', 'Figure', 'First', 'Last', 'Lowest', 'Highest', 'Reported'], rows);
};
