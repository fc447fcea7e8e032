// Server-sent events as they arrive. A chunk may end anywhere: inside a character, or between CR and LF.

import { SILENT, within } from "./patience.js";

export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let [rest, name, data] = ["", "message", []];
  for (let chunk; !(chunk = await heard(reader)).done; ) {
    const lines = (rest + chunk.value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      const [, field, value] = line.match(/^([^:]*):? ?(.*)$/s); // a comment has no field name
      if (field === "event") name = value;
      if (field === "data") data.push(value);
      if (line === "" && data.length) yield { name, data: JSON.parse(data.join("\n")) };
      if (line === "") [name, data] = ["message", []];
    }
  }
}

// What comes next. A stream that has fallen silent is left: a browser has but a few connections.
async function heard(reader) {
  try {
    return await within(SILENT, reader.read());
  } catch (reason) {
    reader.cancel().catch(() => {});
    throw reason;
  }
}
