// Draws avatars of six of DiceBear's styles, none of them the cartoons' (toon-head): a source whose licences allow
// any use. Needs Node.js 20. In an empty folder:
//
//     npm install @dicebear/core@9.4.3 @dicebear/collection@9.4.3 @resvg/resvg-js@2.6.2
//     cp PATH_OF/experiments/avatars.mjs . && node avatars.mjs
//
// writes 1,000 PNG files of each style to drawn/. Licences, as the packages state them: notionists (by Zoish) and
// open-peeps (Pablo Stanley) CC0 1.0; big-ears (The Visual Team), dylan (Natalia Spivak), micah (Micah Lanier) and
// personas (Draftbit) CC BY 4.0. Changes were made: parts and colours are combined at random, with colours beyond
// the styles' own, and the drawings are cropped, every other one mirrored, and reduced.
import { mkdirSync, writeFileSync } from "node:fs";
import { createAvatar } from "@dicebear/core";
import { bigEars, dylan, micah, notionists, openPeeps, personas } from "@dicebear/collection";
import { Resvg } from "@resvg/resvg-js";

const COUNT = 1000; // of each style
const backgroundColor = [
  "b6e3f4", "c0aede", "d1d4f9", "ffd5dc", "ffdfbf", "bfe8d4",
  "f6e7a8", "f2b5a7", "8ecae6", "a8c69f", "e9c46a", "90a8c3",
];
const skin = ["ffdbb4", "f1c3a5", "e3ab8b", "d19a72", "b98e6a", "a36b4f", "7d4f3a", "5c3829"];
const hair = ["1f1a1a", "2c1b18", "4a312c", "724133", "a55728", "c1440e", "b58143", "d6b370", "ecdcbf", "8d8d92"];
const styles = { // each with what makes the face fill the picture
  "big-ears": [bigEars, { scale: 115, skinColor: skin, hairColor: hair }],
  dylan: [dylan, { scale: 115, skinColor: skin, hairColor: hair }],
  micah: [micah, { scale: 135, translateY: 8, baseColor: skin, hairColor: hair }],
  notionists: [notionists, { scale: 160, translateY: 12, gestureProbability: 0, bodyIconProbability: 0 }],
  "open-peeps": [openPeeps, { scale: 135, translateY: 8, skinColor: skin, headContrastColor: hair, maskProbability: 0 }],
  personas: [personas, { scale: 150, translateY: 12, skinColor: skin, hairColor: hair }],
};
for (const [name, [style, options]] of Object.entries(styles)) {
  mkdirSync(`drawn/${name}`, { recursive: true });
  for (let i = 0; i < COUNT; i++) {
    const svg = createAvatar(style, { seed: `avatar ${i}`, flip: i % 2 === 1, backgroundColor, ...options }).toString();
    const png = new Resvg(svg, { fitTo: { mode: "width", value: 256 } }).render().asPng();
    writeFileSync(`drawn/${name}/${String(i).padStart(4, "0")}.png`, png);
  }
}
