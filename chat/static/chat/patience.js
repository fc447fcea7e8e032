// How long something of the server's is waited for. Without it a browser whose network has gone, and that has not been
// told so, waits for a quarter of an hour, and a button that began it stays as it is.

export const ANSWER = 10_000;
// A stream says something every ten seconds, if only a comment.
export const SILENT = 30_000;
const STEP = 5_000;

// What `promise` comes to; or a TypeError, as of a lost connection. Counted in steps: a computer that slept has not waited.
export function within(milliseconds, promise) {
  let clock;
  const late = new Promise((_, refuse) => {
    let waited = 0;
    clock = setInterval(() => (waited += STEP) < milliseconds || refuse(new TypeError("no answer")), STEP);
  });
  return Promise.race([promise, late]).finally(() => clearInterval(clock));
}
