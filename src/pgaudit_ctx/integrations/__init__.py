"""At home with the neighbours: one module for each of them, loaded only by who asks for it."""
