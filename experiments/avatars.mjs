// Draws avatars in DiceBear's styles, none of them the cartoons' (toon-head): a source whose licences allow any use,
// and three target domains on which nothing was tuned. Needs Node.js 20. In an empty folder:
//
//     npm install @dicebear/core@9.4.3 @dicebear/collection@9.4.3 @resvg/resvg-js@2.6.2
//     cp PATH_OF/experiments/avatars.mjs . && node avatars.mjs
//
// writes PNG files: 1,000 of each of six styles to drawn/, and of each target 100 to train on and 1,000 held out to
// targets/. Licences, as the packages state them: notionists (by Zoish), open-peeps (Pablo Stanley) and lorelei (Lisa
// Wischofsky) CC0 1.0; adventurer (Lisa Wischofsky), big-ears (The Visual Team), dylan (Natalia Spivak), micah (Micah
// Lanier) and personas (Draftbit) CC BY 4.0; bottts (Pablo Stanley), the robots, free for personal and commercial use.
// Changes were made: parts and colours are combined at random, with colours beyond the styles' own, and the drawings
// are cropped, every other one mirrored, and reduced.
import { mkdirSync, writeFileSync } from "node:fs";
import { createAvatar } from "@dicebear/core";
import { adventurer, bigEars, bottts, dylan, lorelei, micah, notionists, openPeeps, personas } from "@dicebear/collection";
import { Resvg } from "@resvg/resvg-js";

const backgroundColor = [
  "b6e3f4", "c0aede", "d1d4f9", "ffd5dc", "ffdfbf", "bfe8d4",
  "f6e7a8", "f2b5a7", "8ecae6", "a8c69f", "e9c46a", "90a8c3",
];
const skin = ["ffdbb4", "f1c3a5", "e3ab8b", "d19a72", "b98e6a", "a36b4f", "7d4f3a", "5c3829"];
const hair = ["1f1a1a", "2c1b18", "4a312c", "724133", "a55728", "c1440e", "b58143", "d6b370", "ecdcbf", "8d8d92"];
const sources = { // each with what makes the face fill the picture
  "big-ears": [bigEars, { scale: 115, skinColor: skin, hairColor: hair }],
  dylan: [dylan, { scale: 115, skinColor: skin, hairColor: hair }],
  micah: [micah, { scale: 135, translateY: 8, baseColor: skin, hairColor: hair }],
  notionists: [notionists, { scale: 160, translateY: 12, gestureProbability: 0, bodyIconProbability: 0 }],
  "open-peeps": [openPeeps, { scale: 135, translateY: 8, skinColor: skin, headContrastColor: hair, maskProbability: 0 }],
  personas: [personas, { scale: 150, translateY: 12, skinColor: skin, hairColor: hair }],
};
const targets = {
  adventurers: [adventurer, { scale: 120, skinColor: skin, hairColor: hair }],
  loreleis: [lorelei, { scale: 130, skinColor: skin, hairColor: hair }],
  robots: [bottts, { scale: 100 }],
};

function draw([style, options], i, folder) {
  const svg = createAvatar(style, { seed: `avatar ${i}`, flip: i % 2 === 1, backgroundColor, ...options }).toString();
  const png = new Resvg(svg, { fitTo: { mode: "width", value: 256 } }).render().asPng();
  mkdirSync(folder, { recursive: true });
  writeFileSync(`${folder}/${String(i).padStart(4, "0")}.png`, png);
}

for (const [name, style] of Object.entries(sources)) for (let i = 0; i < 1000; i++) draw(style, i, `drawn/${name}`);
for (const [name, style] of Object.entries(targets)) {
  for (let i = 0; i < 1100; i++) draw(style, i, i < 100 ? `targets/${name}_100` : `targets/${name}_held_out`);
}
