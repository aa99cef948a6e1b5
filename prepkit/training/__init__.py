"""Training whole zoos from specs: what a spec says, which instances follow from it, and how they are trained."""
