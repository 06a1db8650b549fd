// SPDX-License-Identifier: Apache-2.0
//! Which families a service has an address of; after Kubernetes (KEP-563).

use crate::Family;

/// `spec.ipFamilyPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyPolicy {
    /// One family.
    Single,
    /// Both where the cluster has both.
    PreferDual,
    /// Both, or an error.
    RequireDual,
}

impl FamilyPolicy {
    /// As objects write it.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "SingleStack" => Self::Single,
            "PreferDualStack" => Self::PreferDual,
            "RequireDualStack" => Self::RequireDual,
            _ => return None,
        })
    }

    /// As objects write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Single => "SingleStack",
            Self::PreferDual => "PreferDualStack",
            Self::RequireDual => "RequireDualStack",
        }
    }
}

/// Why a service cannot have the families that it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FamilyError {
    /// The first family of a service stays as long as the service.
    #[error(
        "spec.ipFamilies[0]: the service has {had} first and keeps it; delete it and create it anew to change that"
    )]
    FirstChanged {
        /// What it has.
        had: Family,
    },
    /// The family of an address is not the one at its place.
    #[error(
        "spec.clusterIPs[{index}]: the address is not of the family {family} that spec.ipFamilies has there"
    )]
    Mismatch {
        /// Which address.
        index: usize,
        /// What the list of families says.
        family: Family,
    },
    /// The cluster has no service CIDR of it.
    #[error("spec.ipFamilies: the cluster has no service CIDR of {0}")]
    NotInCluster(Family),
    /// The policy wants both.
    #[error("spec.ipFamilyPolicy: RequireDualStack, and the cluster has service CIDRs of one family only")]
    NotDual,
    /// One family is named twice.
    #[error("spec.ipFamilies: {0} is given twice")]
    Twice(Family),
    /// Two families under a policy of one.
    #[error(
        "spec.ipFamilyPolicy: SingleStack, but two families or addresses are given; PreferDualStack or RequireDualStack has two"
    )]
    TwoForSingle,
}

/// What a service says of its families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyWish {
    /// `spec.ipFamilyPolicy`; where it says nothing, two families or addresses mean RequireDualStack, else SingleStack.
    pub policy: Option<FamilyPolicy>,
    /// `spec.ipFamilies`, in their order.
    pub families: Vec<Family>,
    /// Families of `spec.clusterIPs`, in their order.
    pub addresses: Vec<Family>,
    /// The first family that the service has already.
    pub had: Option<Family>,
}

/// The families of a service, the first one first, and the policy that is in force.
///
/// `cluster` are the families of the service CIDRs, the primary one first.
///
/// # Errors
/// What is asked for contradicts itself or the cluster.
pub fn families(wish: &FamilyWish, cluster: &[Family]) -> Result<(Vec<Family>, FamilyPolicy), FamilyError> {
    for list in [&wish.families, &wish.addresses] {
        if let [first, second, ..] = list[..]
            && (first == second || list.len() > 2)
        {
            return Err(FamilyError::Twice(first));
        }
    }
    for (index, (family, address)) in wish.families.iter().zip(&wish.addresses).enumerate() {
        if family != address {
            return Err(FamilyError::Mismatch { index, family: *family });
        }
    }
    // The longer list says more, and agrees with the other as far as that goes.
    let mut families = match wish.addresses.len() > wish.families.len() {
        true => wish.addresses.clone(),
        false => wish.families.clone(),
    };
    let policy = match wish.policy {
        Some(FamilyPolicy::Single) if families.len() > 1 => return Err(FamilyError::TwoForSingle),
        Some(policy) => policy,
        None if families.len() > 1 => FamilyPolicy::RequireDual,
        None => FamilyPolicy::Single,
    };
    if families.is_empty() {
        families.extend(wish.had.or(cluster.first().copied()));
    }
    if let (Some(had), Some(first)) = (wish.had, families.first())
        && had != *first
    {
        return Err(FamilyError::FirstChanged { had });
    }
    if policy != FamilyPolicy::Single && families.len() == 1 {
        families
            .extend(cluster.iter().copied().filter(|family| !families.contains(family)).collect::<Vec<_>>());
    }
    if policy == FamilyPolicy::RequireDual && families.len() < 2 {
        return Err(FamilyError::NotDual);
    }
    if let Some(missing) = families.iter().find(|family| !cluster.contains(family)) {
        return Err(match policy {
            FamilyPolicy::RequireDual => FamilyError::NotDual,
            FamilyPolicy::Single | FamilyPolicy::PreferDual => FamilyError::NotInCluster(*missing),
        });
    }
    Ok((families, policy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Family::{V4, V6};

    fn wish(policy: Option<FamilyPolicy>, families: &[Family], addresses: &[Family]) -> FamilyWish {
        FamilyWish { policy, families: families.to_vec(), addresses: addresses.to_vec(), had: None }
    }

    fn of(policy: Option<FamilyPolicy>, families_: &[Family], addresses: &[Family]) -> Vec<Family> {
        families(&wish(policy, families_, addresses), &[V4, V6]).unwrap().0
    }

    #[test]
    fn policies_as_in_kubernetes() {
        use FamilyPolicy::{PreferDual, RequireDual, Single};
        assert_eq!(of(None, &[], &[]), [V4], "the cluster's first");
        assert_eq!(of(Some(Single), &[V6], &[]), [V6]);
        assert_eq!(of(Some(PreferDual), &[], &[]), [V4, V6]);
        assert_eq!(of(Some(PreferDual), &[V6], &[]), [V6, V4], "the order asked for");
        assert_eq!(of(Some(RequireDual), &[], &[V6]), [V6, V4]);
        assert_eq!(of(None, &[V6, V4], &[]), [V6, V4], "two families say what they want");
        let alone = |wish: &FamilyWish| families(wish, &[V4]);
        assert_eq!(alone(&wish(Some(PreferDual), &[], &[])).unwrap().0, [V4]);
        assert_eq!(alone(&wish(Some(RequireDual), &[], &[])), Err(FamilyError::NotDual));
        assert_eq!(alone(&wish(None, &[V6], &[])), Err(FamilyError::NotInCluster(V6)));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let both = |wish: &FamilyWish| families(wish, &[V4, V6]).unwrap_err();
        assert_eq!(both(&wish(Some(FamilyPolicy::Single), &[V4, V6], &[])), FamilyError::TwoForSingle);
        assert_eq!(both(&wish(None, &[V4, V4], &[])), FamilyError::Twice(V4));
        assert_eq!(both(&wish(None, &[V4], &[V6])), FamilyError::Mismatch { index: 0, family: V4 });
    }

    #[test]
    fn the_first_family_stays_and_the_second_comes_and_goes() {
        let had = |policy, asked: &[Family]| {
            families(&FamilyWish { had: Some(V6), ..wish(policy, asked, &[]) }, &[V4, V6])
        };
        assert_eq!(had(None, &[]).unwrap().0, [V6]);
        assert_eq!(had(Some(FamilyPolicy::PreferDual), &[]).unwrap().0, [V6, V4]);
        assert_eq!(had(None, &[V4]), Err(FamilyError::FirstChanged { had: V6 }));
    }
}
