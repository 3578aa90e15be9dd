"""Labelled data for judges: readers of annotation files, rendered clips, and the sources that training draws from."""
