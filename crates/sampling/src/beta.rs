//! Quantiles of the beta distribution with α = β = 0.6.

const SHAPE: f64 = 0.6;
/// B(0.6, 0.6) = Γ(0.6)² / Γ(1.2)
const NORMALISER: f64 = 2.415_344_208_002_472_3;

/// The `x` below which the distribution has the probability `p`.
pub(crate) fn quantile(p: f64) -> f64 {
    if p <= 0.0 {
        return 0.0;
    }
    if p > 0.5 {
        // Symmetric about a half.
        return 1.0 - quantile(1.0 - p);
    }
    // Newton's method from the leading term of the distribution, held between the ends by bisection.
    let (mut low, mut high) = (0.0, 0.5);
    let mut x = (p * SHAPE * NORMALISER).powf(1.0 / SHAPE).min(0.5);
    for _ in 0..100 {
        let excess = cumulative(x) - p;
        if excess > 0.0 {
            high = x;
        } else {
            low = x;
        }
        let density = (x * (1.0 - x)).powf(SHAPE - 1.0) / NORMALISER;
        let newton = x - excess / density;
        let next = if newton > low && newton < high { newton } else { f64::midpoint(low, high) };
        if (next - x).abs() <= 4.0 * f64::EPSILON * x {
            return next;
        }
        x = next;
    }
    x
}

/// The regularised incomplete beta function for 0 < x ≤ ½, by its hypergeometric series (DLMF 8.17.7, 8.17.8).
fn cumulative(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (1.0, 1.0, 0.0);
    while term > f64::EPSILON * sum {
        term *= x * (2.0 * SHAPE + n) / (SHAPE + 1.0 + n);
        sum += term;
        n += 1.0;
    }
    (x * (1.0 - x)).powf(SHAPE) * sum / (SHAPE * NORMALISER)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scipy.stats.beta.ppf(p, 0.6, 0.6)`, scipy 1.17.1
    const SCIPY: [(f64, f64); 11] = [
        (0.0, 0.0),
        (1e-6, 1.855_882_462_405_304_3e-10),
        (0.001, 1.855_873_851_745_199e-5),
        (0.05, 0.012_554_456_873_611_399),
        (0.25, 0.175_680_378_652_694_98),
        (0.4999, 0.499_861_274_905_499_75),
        (0.5, 0.5),
        (0.7, 0.765_982_996_124_764_3),
        (0.947, 0.986_169_606_912_050_1),
        (0.999, 0.999_981_441_261_482_6),
        (1.0, 1.0),
    ];

    #[test]
    fn quantiles_are_those_of_scipy() {
        for (p, x) in SCIPY {
            assert!((quantile(p) - x).abs() <= 1e-12 * x, "{p}: {} and {x}", quantile(p));
        }
    }
}
