"""`eco-fast analyze`: what the trainings of finished runs were like, measured from what they have kept."""
