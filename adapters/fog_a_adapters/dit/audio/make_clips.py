"""Makes the clips that the demo ships: 30 sentences by espeak-ng, 30 sounds by sox, 16 kHz mono FLAC.

    apt-get install espeak-ng sox flac
    python -m fog_a_adapters.dit.audio.make_clips            # writes into this folder's clips/

Nothing is recorded and nothing is random (sox runs with -R), so the same programs (espeak-ng 1.51, sox 14.4.2) make
the same samples again. In each domain 14 clips are for training and 16 are held out: other sentences by the same
voices, other sounds of the same families. 16, because an interval from fewer samples does not keep its level.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

RATE = 16_000
PEAK_DB = -15  # quiet clips make small FLACs; the loader normalises the peak

VOICES = {  # name: espeak-ng voice, pitch, words per minute
    "anna": ("en-us+f3", 62, 165),
    "ben": ("en-us+m3", 40, 170),
    "clara": ("en-gb-x-rp+f2", 70, 180),
    "duncan": ("en-gb-scotland+m1", 30, 160),
    "eve": ("en-029+f4", 55, 175),
}


def rows(table: str) -> list[list[str]]:
    """The lines of a table, cut at |."""
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


# voice | sentence | split
SENTENCES = rows("""
anna | The lamp by the window is still burning. | train
anna | Seven grey geese flew over the river. | train
anna | Please write your name on the first page. | train
anna | The morning train leaves from platform nine. | test
anna | Close the door. | test
anna | Nine birds sat there. | test
ben | A small boat waited under the bridge. | train
ben | She keeps her letters in a wooden box. | train
ben | Nobody heard the clock strike eleven. | train
ben | We cooked the fish over an open fire. | test
ben | Wait for me here. | test
ben | The soup is cold. | test
clara | The baker sold his last loaf at noon. | train
clara | Rain fell softly on the copper roof. | train
clara | Could you lend me a sharper knife? | test
clara | Our neighbour plays the cello every evening. | test
clara | What a bright moon! | test
clara | Bring two chairs. | test
duncan | Two brothers built the wall by hand. | train
duncan | The fog had covered the whole valley. | train
duncan | Turn left at the church and go straight on. | train
duncan | An old map hung above the fireplace. | test
duncan | The ferry is late. | test
duncan | Mind the step. | test
eve | The children counted the stars aloud. | train
eve | His answer was short and quite polite. | train
eve | Fresh snow makes the garden very quiet. | train
eve | They crossed the desert in thirteen days. | test
eve | Who left the light on? | test
eve | Ten past four. | test
""")

# family | what it is | arguments of `sox -n` after the output file | split
SOUNDS = rows("""
siren | a siren rising and falling | synth 1.3 sine 500/1100 synth 1.3 sine amod 3 repeat 1 | train
siren | a fast siren | synth 0.45 triangle 650/1350 repeat 5 | test
siren | a slow siren | synth 1.4 sine 400/900 | test
chirp | short rising chirps | synth 0.18 sine 1200/4200 fade 0.01 0.18 0.05 pad 0 0.14 repeat 7 | train
chirp | falling bird-like chirps | synth 0.11 sine 5600/2500 fade 0.01 0.11 0.04 pad 0 0.19 repeat 8 | test
chirp | high chirps | synth 0.12 sine 3000/5200 fade 0.01 0.12 0.04 pad 0 0.1 repeat 5 | test
noise burst | slow bursts of white noise | synth 0.25 whitenoise fade 0 0.25 0.2 pad 0 0.35 repeat 3 | train
noise burst | a train of dull thuds | synth 0.16 brownnoise fade 0 0.16 0.14 pad 0 0.19 repeat 6 | test
noise burst | two long bursts of noise | synth 0.4 whitenoise fade 0 0.4 0.35 pad 0 0.3 repeat 1 | test
pluck | a plucked string playing low notes | synth 0.6 pluck A2 pad 0 0.02 repeat 3 | train
pluck | a plucked string playing quick notes | synth 0.3 pluck E4 pad 0 0.01 repeat 7 | test
pluck | a plucked chord, note by note | synth 0.45 pluck C3 pad 0 0.02 repeat 2 | test
drone | a low drone with a beat | synth 2.5 sawtooth 82 synth 2.5 sawtooth mix 83.5 vol 0.4 lowpass 1200 | train
drone | a bright organ-like drone | synth 2.5 square 164 synth 2.5 square mix 247 vol 0.4 lowpass 2600 | train
drone | a hollow drone | synth 1.4 square 110 synth 1.4 square mix 165.5 vol 0.4 lowpass 1800 | test
bell | a bell struck twice | synth 1.25 sine 880 synth 1.25 sine fmod 1240 fade 0 1.25 1.2 repeat 1 | train
bell | a small high bell | synth 0.6 sine 1760 synth 0.6 sine fmod 2810 fade 0 0.6 0.58 repeat 3 | test
bell | a deep bell | synth 1.4 sine 440 synth 1.4 sine fmod 702 fade 0 1.4 1.35 | test
wind | wind swelling slowly | synth 2.6 pinknoise synth 2.6 sine amod 0.5 10 bandpass 500 300 | train
wind | wind whistling | synth 2.6 pinknoise synth 2.6 sine amod 0.8 20 bandpass 1400 250 | train
wind | a gust of wind | synth 1.4 pinknoise synth 1.4 sine amod 0.9 10 bandpass 800 300 | test
engine | an engine idling | synth 2.5 sawtooth 46 synth 2.5 sine amod 11 25 vol 0.4 lowpass 900 | train
engine | an engine speeding up | synth 2.5 sawtooth 60/190 synth 2.5 sine amod 17 30 vol 0.4 lowpass 1500 | train
engine | an engine running fast | synth 1.4 sawtooth 120 synth 1.4 sine amod 23 25 vol 0.4 lowpass 1300 | test
alarm | a two-tone alarm | synth 0.25 square 800 pad 0 0.05 repeat 7 vol 0.4 lowpass 3500 | train
alarm | an alarm clock beeping | synth 0.09 square 2100 pad 0 0.06 repeat 16 vol 0.4 lowpass 5000 | test
surf | waves breaking | synth 2.6 brownnoise synth 2.6 triangle amod 0.75 5 vol 0.4 lowpass 2500 | train
surf | a small wave | synth 1.4 brownnoise synth 1.4 triangle amod 0.7 5 vol 0.4 lowpass 3000 | test
helicopter | a helicopter | synth 0.09 brownnoise fade 0 0.09 0.07 repeat 27 vol 0.4 lowpass 1800 | train
helicopter | a distant helicopter | synth 0.11 brownnoise fade 0 0.11 0.09 repeat 12 vol 0.4 lowpass 1100 | test
""")


def call(*command: str) -> None:
    """Run a program; its own words are shown when it fails."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def speak(text: str, voice: str, out: Path) -> None:
    """One sentence, espeak-ng's silence at both ends cut to 50 ms."""
    name, pitch, speed = VOICES[voice]
    raw = out.with_suffix(".wav")
    call("espeak-ng", "-v", name, "-p", str(pitch), "-s", str(speed), "-w", str(raw), text)
    trim = "silence 1 0.05 0.5% reverse silence 1 0.05 0.5% reverse pad 0.05 0.05".split()
    call("sox", "-R", str(raw), "-r", str(RATE), "-c", "1", "-b", "16", str(out), *trim, "norm", str(PEAK_DB))
    raw.unlink()


def sound(synth: str, out: Path) -> None:
    """One sound by sox's synthesiser over pink noise 45 dB below it: no recording is silent between tones."""
    shape = ("-r", str(RATE), "-c", "1", "-b", "16")
    dry, floor = out.with_suffix(".dry.wav"), out.with_suffix(".floor.wav")
    call("sox", "-R", "-n", *shape, str(dry), *synth.split(), "fade", "0.02", "-0", "0.05", "norm", "-1")
    length = subprocess.run(["soxi", "-D", str(dry)], check=True, capture_output=True, text=True).stdout.strip()
    call("sox", "-R", "-n", *shape, str(floor), "synth", length, "pinknoise", "norm", "-46")
    call("sox", "-R", "-m", "-v", "0.9", str(dry), "-v", "0.9", str(floor), *shape, str(out), "norm", str(PEAK_DB))
    dry.unlink()
    floor.unlink()


def make(folder: Path) -> int:
    """Writes all clips and manifest.csv; returns the size of the clips in bytes."""
    import soundfile

    for part in ("speech", "sound"):
        shutil.rmtree(folder / part, ignore_errors=True)
        (folder / part).mkdir(parents=True)
    lines: list[tuple[str, str, str, str, str]] = []
    count: Counter[str] = Counter()

    def place(domain: str, source: str, text: str, split: str) -> Path:
        path = f"{domain}/{source.replace(' ', '_')}_{count[source]}.flac"
        count[source] += 1
        lines.append((path, domain, source, text, split))
        return folder / path

    for voice, text, split in SENTENCES:
        speak(text, voice, place("speech", voice, text, split))
    for family, text, synth, split in SOUNDS:
        sound(synth, place("sound", family, text, split))
    with open(folder / "manifest.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "domain", "source", "text", "split", "seconds"))
        for line in lines:
            table.writerow((*line, round(soundfile.info(folder / line[0]).duration, 3)))
    return sum((folder / line[0]).stat().st_size for line in lines)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "clips"
    print(f"{target}: {make(target) / 1e6:.2f} MB")
