// Elements, numbers as people read them, and scales. Text only ever becomes text: nothing here parses HTML.

const SVG = 'http://www.w3.org/2000/svg';

/** An element with attributes and children; `on...` attributes are listeners. */
const make = (space, name, attributes, children) => {
  const element = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (key === 'style') Object.entries(value).forEach(([k, v]) => element.style.setProperty(k, v));
    else element.setAttribute(key, value === true ? '' : value);
  }
  element.append(
    ...children.flat().filter(child => child !== null && child !== undefined && child !== false),
  );
  return element;
};
const html = (name, attributes, ...children) => make(null, name, attributes, children);
const svg = (name, attributes, ...children) => make(SVG, name, attributes, children);

const isNumber = value => typeof value === 'number' && Number.isFinite(value);
const sum = values => values.reduce((all, value) => all + value, 0);

/** At most `digits` significant digits, without zeros behind them. */
const digits = (value, count) => String(Number(value.toPrecision(count)));

/** A number in few characters: 12.3k, 4.5e-7. */
const short = (value, count = 3) => {
  if (!isNumber(value)) return '–';
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-4) return value.toExponential(Math.max(0, count - 1)).replace(/\.?0+e/, 'e');
  for (const [unit, name] of [
    [1e12, 'T'],
    [1e9, 'G'],
    [1e6, 'M'],
    [1e3, 'k'],
  ]) {
    if (size >= unit * 0.9995) return digits(value / unit, count) + name;
  }
  return digits(value, count);
};
const whole = value => (isNumber(value) ? value.toLocaleString('en-US', { maximumFractionDigits: 0 }) : '–');
const percent = (share, count = 1) => (isNumber(share) ? `${(100 * share).toFixed(count)} %` : '–');
const bytes = value => {
  if (!isNumber(value)) return '–';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const at = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(value, 1)) / 10));
  return `${digits(value / 2 ** (10 * at), 4)} ${units[at]}`;
};

/** Seconds as 12.3 s, 4 min 5 s, 6 h 7 min or 8 d 9 h. */
const duration = seconds => {
  if (!isNumber(seconds)) return '–';
  if (seconds < 60) return `${digits(seconds, 3)} s`;
  const parts = [
    [86400, 'd'],
    [3600, 'h'],
    [60, 'min'],
    [1, 's'],
  ];
  const at = parts.findIndex(([size]) => seconds >= size);
  const [big, small] = [parts[at], parts[at + 1]];
  const count = Math.floor(seconds / big[0]);
  const rest = Math.floor((seconds - count * big[0]) / small[0]);
  return `${count} ${big[1]}` + (rest ? ` ${rest} ${small[1]}` : '');
};
/** Ticks of an axis of time. */
const clockText = seconds => {
  if (seconds < 60) return `${digits(seconds, 3)} s`;
  const two = n => String(n).padStart(2, '0');
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.round(seconds % 60)];
  return h ? `${h}:${two(m)} h` : `${m}:${two(s)} min`;
};

/** Round values between two numbers, about `count` of them. */
const ticks = (low, high, count) => {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find(n => n * power >= rough * 0.999) * power;
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
};
/** The same of seconds: in steps that clocks have. */
const timeTicks = (low, high, count) => {
  const rough = (high - low) / Math.max(1, count);
  if (rough < 1) return ticks(low, high, count);
  const step =
    [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400].find(
      step => step >= rough * 0.999,
    ) || 86400 * Math.ceil(rough / 86400);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9; n++) found.push(n * step);
  return found;
};
/** The same on a logarithmic axis. */
const logTicks = (low, high, count) => {
  const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  for (const factors of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1]]) {
    const found = [];
    for (let power = from; power <= to; power++) {
      for (const factor of factors) {
        const value = Number(`${factor}e${power}`);
        if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
      }
    }
    if (found.length <= count * 1.6 && found.length >= 2) return found;
    if (factors.length === 1 && found.length > 2) {
      const every = Math.ceil(found.length / count);
      return found.filter((_, n) => n % every === 0);
    }
  }
  return ticks(low, high, count);
};

/** From values to pixels, logarithmic or not. */
const scale = (low, high, from, to, isLog) => {
  const f = isLog ? Math.log : value => value;
  const [a, b] = [f(low), f(high)];
  const slope = b > a ? (to - from) / (b - a) : 0;
  const at = value => from + (f(value) - a) * slope;
  const back = pixel => {
    const value = slope ? a + (pixel - from) / slope : a;
    return isLog ? Math.exp(value) : value;
  };
  return { at, back, low, high, isLog };
};

/** Where in a rising list `value` would be: the number of elements at or below it. */
const rank = (list, value) => {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low;
};
/** The element of a rising list that is nearest to `value`. */
const nearest = (list, value) => {
  const at = rank(list, value);
  if (at === 0) return 0;
  if (at === list.length) return at - 1;
  return value - list[at - 1] <= list[at] - value ? at - 1 : at;
};
