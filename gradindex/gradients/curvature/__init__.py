"""K-FAC and EKFAC from the engines' own factors, and rows of gradients whitened by them."""

from gradindex.gradients.curvature.curvature import AUTOMATIC_DAMPING as AUTOMATIC_DAMPING
from gradindex.gradients.curvature.curvature import Curvature as Curvature
from gradindex.gradients.curvature.drawn import NoDistribution as NoDistribution
from gradindex.gradients.curvature.whitened import Leading as Leading
from gradindex.gradients.curvature.whitened import Whitened as Whitened
