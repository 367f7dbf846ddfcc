"""The page of a run that a person looks at, and its pictures."""
