"""The palette of all figures, Okabe and Ito's, for all kinds of color vision."""

BLACK, GRAY, ORANGE, YELLOW = "#000000", "#7f7f7f", "#E69F00", "#F0E442"
SKY, BLUE, GREEN, RED, PINK = "#56B4E9", "#0072B2", "#009E73", "#D55E00", "#CC79A7"
