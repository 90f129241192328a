"""Long chains for measuring and looking: what they tell, who signs it, how it is stored."""
