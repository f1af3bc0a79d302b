"""Where models come from: a catalogue of cards, one store by digest, several sources. Offline once fetched."""
