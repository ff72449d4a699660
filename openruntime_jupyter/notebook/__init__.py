"""The notebook's face: magics, and how tasks look in a cell."""
