"""HTML pages of a run and of a grid, and the plots on them."""
