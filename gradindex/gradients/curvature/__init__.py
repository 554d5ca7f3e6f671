"""K-FAC and EKFAC from the engines' own factors, and rows of gradients whitened by them."""

from gradindex.gradients.curvature.curvature import Curvature as Curvature
