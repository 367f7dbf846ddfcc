"""A second look by code that did not write what it looks at, and the page that a privacy office signs."""
