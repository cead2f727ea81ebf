"""One file for each library whose objects can be saved; it is imported when the first of them is met."""
