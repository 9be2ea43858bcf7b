/**
 * The developer turn that was trained, with the dates in it filled in: what `fgtune/data/developer_turn.py` does.
 * A turn is `{template, fields: [{name, format}]}`; formats are strftime's, in English.
 */
const WEEKDAYS = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday'];
const MONTHS = ['January', 'February', 'March', 'April', 'May', 'June', 'July', 'August', 'September', 'October',
  'November', 'December'];
// Two times that differ in every part: year, month from 0, day, hour, minute, second, millisecond.
const TWO_TIMES = [[1987, 1, 3, 4, 15, 26, 123], [2046, 10, 28, 17, 48, 59, 654]];

/** Whether a turn is in UTC: a format ends in Z or +00:00. */
const inUtc = ({ fields }) => fields.some(({ format }) => format.endsWith('Z') || format.endsWith('+00:00'));

/** The text of a turn at a time. */
export function fillTurn(turn, now = new Date()) {
  const utc = inUtc(turn);
  let text = '';
  let rest = turn.template;
  for (const { name, format } of turn.fields) {
    const place = rest.indexOf(`{${name}}`);
    text += rest.slice(0, place) + formatTime(now, format, utc);
    rest = rest.slice(place + name.length + 2);
  }
  return text + rest;
}

/** The text of a turn at two times that have nothing in common: what both begin with, every text begins with. */
export function atTwoTimes(turn) {
  return TWO_TIMES.map((parts) => fillTurn(turn, inUtc(turn) ? new Date(Date.UTC(...parts)) : new Date(...parts)));
}

/** A time in one of strftime's formats. */
export function formatTime(now, format, utc = false) {
  const get = (part) => now[`get${utc ? 'UTC' : ''}${part}`]();
  const month = MONTHS[get('Month')];
  const two = (number) => String(number).padStart(2, '0');
  const thousandths = String(get('Milliseconds')).padStart(3, '0');
  const ahead = utc ? 0 : -now.getTimezoneOffset(); // of UTC, in minutes
  const values = {
    Y: String(get('FullYear')).padStart(4, '0'),
    m: get('Month') + 1,
    d: get('Date'),
    H: get('Hours'),
    I: get('Hours') % 12 || 12,
    M: get('Minutes'),
    S: get('Seconds'),
    f: `${thousandths}000`,
    '3f': thousandths,
    ':z': `${ahead < 0 ? '-' : '+'}${two(Math.floor(Math.abs(ahead) / 60))}:${two(Math.abs(ahead) % 60)}`,
    B: month,
    b: month.slice(0, 3),
    A: WEEKDAYS[get('Day')],
    p: get('Hours') < 12 ? 'AM' : 'PM',
  };
  return format.replace(/%(-?)([:3]?[A-Za-z])/g, (directive, bare, name) => {
    if (!Object.hasOwn(values, name)) throw new Error(`${directive} is not supported in a developer turn`);
    const value = values[name];
    return typeof value === 'string' || bare ? String(value) : two(value);
  });
}
