use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::pool::Pools;

/// Names a node of the prefix cache; valid while a request holds the node's full block.
pub(crate) type NodeId = usize;

/// Blocks of earlier sequences, as a tree keyed by what their tokens are and what came before.
///
/// A node stands for up to one block of tokens after its parent's. Only nodes of whole blocks have children, and no
/// node's tokens begin another's among siblings. Every node keeps a block of the full pool; only some keep one of the
/// sliding pool, since the sliding layers' keys are wanted just where a later prompt may go on: in the window before an
/// end of a prompt, generation or chunk.
///
/// A request holds the full blocks of all nodes on its path, so that a held node never hangs under an evictable one.
pub(crate) struct PrefixCache {
    nodes: Vec<Option<Node>>,
    vacant: Vec<NodeId>,
    roots: Vec<NodeId>,
    block_tokens: usize,
    window: usize,
    /// Counts lookups and entries: the time of "least recently used".
    clock: u64,
}

struct Node {
    parent: Option<NodeId>,
    tokens: Vec<u32>,
    full: u32,
    sliding: Option<SlidingBlock>,
    children: Vec<NodeId>,
    used: u64,
}

/// A sliding-pool block that a node keeps.
#[derive(Clone, Copy)]
struct SlidingBlock {
    block: u32,
    /// How many of the node's tokens it is known to hold.
    valid: usize,
    used: u64,
}

/// The longest prefix of a prompt that the cache can give.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Hit {
    /// Its length in tokens.
    pub(crate) tokens: usize,
    /// Nodes of the whole blocks in it, to be shared.
    pub(crate) path: Vec<NodeId>,
    /// Index of the first of `sliding`.
    pub(crate) sliding_first: usize,
    /// Sliding blocks of the whole blocks that the window before the hit's end touches, to be shared.
    pub(crate) sliding: Vec<u32>,
    /// The block it ends inside of, to be copied.
    pub(crate) tail: Option<Tail>,
    /// How far the full layers alone would have matched. Where this is more than `tokens`, a sliding window kept there
    /// would have helped.
    pub(crate) matched: usize,
}

/// Blocks whose first positions continue a hit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tail {
    pub(crate) full: u32,
    /// Absent only where the window holds nothing but the query itself.
    pub(crate) sliding: Option<u32>,
}

impl PrefixCache {
    pub(crate) fn new(block_tokens: u32, window: u32) -> Self {
        Self {
            nodes: Vec::new(),
            vacant: Vec::new(),
            roots: Vec::new(),
            block_tokens: block_tokens as usize,
            window: window as usize,
            clock: 0,
        }
    }

    /// A new time, later than all before.
    pub(crate) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The longest usable prefix of `tokens`. Changes nothing; see [`Self::touch`].
    pub(crate) fn lookup(&self, tokens: &[u32]) -> Hit {
        let path = self.whole_blocks(tokens);
        let mut matched = 0;
        for depth in (0..=path.len()).rev() {
            let Some(end) = self.end_in_block(&path[..depth], &tokens[depth * self.block_tokens..]) else { continue };
            matched = matched.max(depth * self.block_tokens + end.matched);
            if let Some(hit) = self.hit_at(&path, depth, &end) {
                return Hit { matched, ..hit };
            }
        }
        Hit { matched, ..Hit::default() }
    }

    /// Nodes of the whole blocks that `tokens` starts with.
    fn whole_blocks(&self, tokens: &[u32]) -> Vec<NodeId> {
        let mut path = Vec::new();
        for block in tokens.chunks_exact(self.block_tokens) {
            let children = self.children(path.last().copied());
            match children.iter().find(|child| self.node(**child).tokens == block) {
                Some(child) => path.push(*child),
                None => break,
            }
        }
        path
    }

    /// Where a hit may end in the block that follows `path`, given the tokens from there on.
    fn end_in_block(&self, path: &[NodeId], rest: &[u32]) -> Option<BlockEnd> {
        let mut best_full: Option<(usize, NodeId)> = None;
        let mut best_sliding: Option<(usize, NodeId)> = None;
        for &child in self.children(path.last().copied()) {
            let node = self.node(child);
            let common = common_prefix(&node.tokens, rest);
            if common > best_full.map_or(0, |(length, _)| length) {
                best_full = Some((common, child));
            }
            let valid = node.sliding.map_or(0, |sliding| sliding.valid).min(common);
            if valid > best_sliding.map_or(0, |(length, _)| length) {
                best_sliding = Some((valid, child));
            }
        }
        let (matched, full) = best_full?;
        // A window of one position reads no earlier sliding key at all.
        let (sliding_valid, sliding) = match best_sliding {
            _ if self.window == 1 => (matched, None),
            Some((valid, node)) => (valid, Some(node)),
            None => (0, None),
        };
        Some(BlockEnd { matched, length: matched.min(sliding_valid), full, sliding })
    }

    /// The hit that ends as `end` says in block `depth`, if the sliding layers' window before it is there.
    fn hit_at(&self, path: &[NodeId], depth: usize, end: &BlockEnd) -> Option<Hit> {
        if end.length == 0 {
            return None;
        }
        let tokens = depth * self.block_tokens + end.length;
        let is_whole = end.length == self.block_tokens;
        let shared = if is_whole { depth + 1 } else { depth };
        let window_start = (tokens + 1).saturating_sub(self.window);
        let sliding_first = (window_start / self.block_tokens).min(shared);
        let sliding = match self.window {
            1 => Vec::new(),
            _ => path[sliding_first..shared].iter().map(|id| self.whole_sliding(*id)).collect::<Option<Vec<_>>>()?,
        };
        let tail = (!is_whole).then(|| Tail {
            full: self.node(end.full).full,
            sliding: end.sliding.and_then(|id| self.node(id).sliding).map(|sliding| sliding.block),
        });
        let sliding_first = if self.window == 1 { shared } else { sliding_first };
        Some(Hit { tokens, path: path[..shared].to_vec(), sliding_first, sliding, tail, matched: tokens })
    }

    fn whole_sliding(&self, id: NodeId) -> Option<u32> {
        self.node(id).sliding.filter(|sliding| sliding.valid == self.block_tokens).map(|sliding| sliding.block)
    }

    /// Marks what a hit uses as used now.
    pub(crate) fn touch(&mut self, hit: &Hit) {
        let now = self.tick();
        for (index, &id) in hit.path.iter().enumerate() {
            let node = self.node_mut(id);
            node.used = now;
            if let Some(sliding) = node.sliding.as_mut().filter(|_| index >= hit.sliding_first) {
                sliding.used = now;
            }
        }
        let Some(tail) = hit.tail else { return };
        for child in self.children(hit.path.last().copied()).to_vec() {
            let node = self.node_mut(child);
            if node.full == tail.full {
                node.used = now;
            }
            if let Some(sliding) = node.sliding.as_mut().filter(|sliding| Some(sliding.block) == tail.sliding) {
                sliding.used = now;
            }
        }
    }

    /// Enters a block: `full` holds `tokens` (at most a block of them, at least one) after those of `parent`. Returns the
    /// node that covers them; its full block is another where the cache already had these tokens.
    pub(crate) fn enter(&mut self, parent: Option<NodeId>, tokens: &[u32], full: u32, pools: &mut Pools) -> NodeId {
        let now = self.tick();
        let children = self.children(parent);
        let covering = children.iter().copied().find(|id| self.node(*id).tokens.starts_with(tokens));
        if let Some(id) = covering {
            self.node_mut(id).used = now;
            return id;
        }
        if let Some(id) = children.iter().copied().find(|id| tokens.starts_with(&self.node(*id).tokens)) {
            pools.full.keep(full);
            let node = self.node_mut(id);
            pools.full.unkeep(std::mem::replace(&mut node.full, full));
            node.tokens = tokens.to_vec();
            node.used = now;
            return id;
        }
        pools.full.keep(full);
        self.insert(Node { parent, tokens: tokens.to_vec(), full, sliding: None, children: Vec::new(), used: now })
    }

    fn insert(&mut self, node: Node) -> NodeId {
        let parent = node.parent;
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            self.nodes.len() - 1
        });
        self.nodes[id] = Some(node);
        self.children_mut(parent).push(id);
        id
    }

    /// Keeps a sliding block for the first `valid` tokens of a node, unless it keeps one as good.
    pub(crate) fn keep_sliding(&mut self, id: NodeId, block: u32, valid: usize, used: u64, pools: &mut Pools) {
        let kept = self.node(id).sliding;
        if kept.is_some_and(|kept| kept.valid >= valid) {
            return;
        }
        pools.sliding.keep(block);
        if let Some(kept) = self.node_mut(id).sliding.replace(SlidingBlock { block, valid, used }) {
            pools.sliding.unkeep(kept.block);
        }
    }

    /// When the sliding block of a node was last used, where it keeps one.
    pub(crate) fn sliding_used(&self, id: NodeId) -> Option<u64> {
        self.node(id).sliding.map(|sliding| sliding.used)
    }

    /// Marks the sliding block of a node, if it keeps one, as used at `used`.
    pub(crate) fn touch_sliding(&mut self, id: NodeId, used: u64) {
        if let Some(sliding) = self.node_mut(id).sliding.as_mut() {
            sliding.used = used;
        }
    }

    /// Stops keeping the sliding block of a node.
    pub(crate) fn drop_sliding(&mut self, id: NodeId, pools: &mut Pools) {
        if let Some(sliding) = self.node_mut(id).sliding.take() {
            pools.sliding.unkeep(sliding.block);
        }
    }

    /// The full block of a node.
    pub(crate) fn full(&self, id: NodeId) -> u32 {
        self.node(id).full
    }

    /// Forgets least recently used leaves until `wanted` more full blocks are free or nothing is left to evict.
    pub(crate) fn evict_full(&mut self, wanted: u32, pools: &mut Pools) {
        let target = pools.full.free() + wanted;
        let mut leaves: BinaryHeap<Reverse<(u64, NodeId)>> = self
            .live()
            .filter(|(_, node)| is_evictable(node, pools))
            .map(|(id, node)| Reverse((node.used, id)))
            .collect();
        while pools.full.free() < target {
            let Some(Reverse((_, id))) = leaves.pop() else { return };
            let parent = self.remove(id, pools);
            let Some(parent) = parent else { continue };
            let node = self.node(parent);
            if is_evictable(node, pools) {
                leaves.push(Reverse((node.used, parent)));
            }
        }
    }

    /// Forgets least recently used sliding blocks until `wanted` more are free or nothing is left to evict.
    pub(crate) fn evict_sliding(&mut self, wanted: u32, pools: &mut Pools) {
        let target = pools.sliding.free() + wanted;
        let mut kept: Vec<(u64, NodeId)> = self
            .live()
            .filter_map(|(id, node)| Some((node.sliding?, id)))
            .filter(|(sliding, _)| !pools.sliding.is_held(sliding.block))
            .map(|(sliding, id)| (sliding.used, id))
            .collect();
        kept.sort_unstable();
        for (_, id) in kept {
            if pools.sliding.free() >= target {
                return;
            }
            self.drop_sliding(id, pools);
        }
    }

    /// Removes a leaf and returns its parent.
    fn remove(&mut self, id: NodeId, pools: &mut Pools) -> Option<NodeId> {
        self.drop_sliding(id, pools);
        let node = self.nodes[id].take().expect("only live nodes are removed");
        self.vacant.push(id);
        pools.full.unkeep(node.full);
        self.children_mut(node.parent).retain(|child| *child != id);
        node.parent
    }

    fn live(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().filter_map(|(id, node)| Some((id, node.as_ref()?)))
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes[id].as_ref().expect("a node id is used only while its node lives")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id].as_mut().expect("a node id is used only while its node lives")
    }

    fn children(&self, parent: Option<NodeId>) -> &[NodeId] {
        match parent {
            Some(id) => &self.node(id).children,
            None => &self.roots,
        }
    }

    fn children_mut(&mut self, parent: Option<NodeId>) -> &mut Vec<NodeId> {
        match parent {
            Some(id) => &mut self.node_mut(id).children,
            None => &mut self.roots,
        }
    }

    /// Adds up how often each block is kept, and checks the shape of the tree.
    pub(crate) fn audit(&self, full: &mut [u32], sliding: &mut [u32]) -> Result<(), String> {
        for (id, node) in self.live() {
            full[node.full as usize] += 1;
            if let Some(kept) = node.sliding {
                sliding[kept.block as usize] += 1;
                if kept.valid > node.tokens.len() {
                    return Err(format!("node {id} keeps a sliding block beyond its tokens"));
                }
            }
            if node.tokens.is_empty() || (node.tokens.len() < self.block_tokens && !node.children.is_empty()) {
                return Err(format!("node {id} is empty, or partial with children"));
            }
            let siblings = self.children(node.parent);
            let shadowed = |other: &NodeId| *other != id && self.node(*other).tokens.starts_with(&node.tokens);
            if !siblings.contains(&id) || siblings.iter().any(shadowed) {
                return Err(format!("node {id} is not among its parent's children, or begins a sibling"));
            }
        }
        Ok(())
    }
}

/// Where a hit may end inside a block.
struct BlockEnd {
    /// Tokens that the full layers match.
    matched: usize,
    /// Tokens that both kinds of layers have.
    length: usize,
    /// Whose full block.
    full: NodeId,
    /// Whose sliding block.
    sliding: Option<NodeId>,
}

fn is_evictable(node: &Node, pools: &Pools) -> bool {
    node.children.is_empty() && !pools.full.is_held(node.full)
}

/// How many tokens two sequences have in common at their start.
pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
