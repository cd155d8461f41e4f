"""What chapter 2 of the dissertation reviews, and what came after: one script a method, run as a module."""
