"""One vision-language model and how it is read."""
