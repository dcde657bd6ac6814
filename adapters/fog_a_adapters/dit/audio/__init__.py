"""From a folder of audio to batches: manifest, log-mel, frame tokens; and the clips that come with the package."""
