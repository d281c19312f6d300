"""What is done with the validation pictures: figures, drawings, and a trial before anything is trained."""
