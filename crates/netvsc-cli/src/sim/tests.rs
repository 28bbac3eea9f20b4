use super::*;

const PROFILES: [Profile; 7] = [
    Profile::Smoke,
    Profile::AzureBoot,
    Profile::Servicing,
    Profile::Flapping,
    Profile::Hostile,
    Profile::Ports,
    Profile::Scale,
];

#[test]
fn a_seed_gives_the_same_system_to_the_last_event() {
    for profile in PROFILES {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let one_of = |events: &mut Vec<String>| {
            one(5, profile, usize::MAX, &mut |event| events.push(event.to_string()))
        };
        assert_eq!(one_of(&mut first), one_of(&mut second));
        assert_eq!(first, second);
        assert!(first.len() > 10, "{profile:?}: {first:?}");
    }
}

#[test]
fn a_few_seeds_of_every_profile_pass() {
    for profile in PROFILES {
        for seed in 100..103 {
            let outcome = judge(seed, profile);
            assert_eq!(outcome.failure, None, "{profile:?}, seed {seed}");
            assert!(outcome.figures.frames_out > 0, "{profile:?}, seed {seed}");
        }
    }
}

#[test]
fn shares_divide_the_seeds_without_rest() {
    let args = |shard: Option<&str>| SimArgs {
        seeds: "10..20".parse().expect("a range"),
        profile: Profile::Smoke,
        jobs: None,
        shard: shard.map(|text| text.parse().expect("a share")),
        until_failure: false,
        replay: None,
        acts: None,
        json: false,
    };
    let seeds = |shard| (0..).map_while(|at| seed_at(&args(shard), at)).collect::<Vec<_>>();
    assert_eq!(seeds(None), (10..20).collect::<Vec<_>>());
    let mut all: Vec<_> = ["0/3", "1/3", "2/3"].into_iter().flat_map(|s| seeds(Some(s))).collect();
    all.sort_unstable();
    assert_eq!(all, (10..20).collect::<Vec<_>>());
}
