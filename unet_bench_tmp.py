import os, sys, time, json, gzip, glob, collections
os.environ["XLA_FLAGS"]="--xla_gpu_enable_triton_gemm=false "+os.environ.get("XF","")
os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"]="0.92"
import jax, jax.numpy as jnp, numpy as np
import flax.linen as nn, functools
opts=set(sys.argv[2].split(",")) if len(sys.argv)>2 else set()
from escherjax import cape
from escherjax.cameras import Cameras, from_spherical
from escherjax.models import blocks, attention, unet
from escherjax.models.unet import UNet
if "dot" in opts:
    C0=nn.Conv
    class PW(nn.Module):
        features:int; kernel_size:tuple; dtype:object=None; param_dtype:object=jnp.float32; kernel_init:object=nn.initializers.lecun_normal()
        @nn.compact
        def __call__(self,x):
            k=self.param("kernel",self.kernel_init,(1,1,x.shape[-1],self.features),self.param_dtype); b=self.param("bias",nn.initializers.zeros,(self.features,),self.param_dtype)
            return jnp.dot(x.astype(self.dtype),k[0,0].astype(self.dtype))+b.astype(self.dtype).reshape((1,)*(x.ndim-1)+(-1,))
    def conv(f,k,**kw): return PW(f,k,**kw) if tuple(k)==(1,1) else C0(f,k,**kw)
    nn.Conv=conv
if "flaxgn" in opts:
    def GN(num_groups, epsilon=1e-5, activation=None, **kw):
        g=nn.GroupNorm(num_groups, epsilon=epsilon, **kw)
        return (lambda x: activation(g(x))) if activation else g
    blocks.GroupNorm=GN; unet.GroupNorm=GN
if "ckpt" in opts:
    G=blocks.GroupNorm.__call__
    blocks.GroupNorm=nn.remat(blocks.GroupNorm, prevent_cse="barrier" in opts)
    def geglu(v,g): return v*nn.gelu(g,approximate=False)
    blocks._GEGLUProjection=nn.remat(blocks._GEGLUProjection, prevent_cse=False) if "geglu" in opts else blocks._GEGLUProjection
mode=sys.argv[1]
rng=np.random.default_rng(0)
net=UNet(dtype=jnp.bfloat16, remat="remat" in opts)
shapes=jax.eval_shape(UNet(cape="none").init, jax.random.key(0), jnp.zeros((1,1,8,8,4)), jnp.zeros((1,),jnp.int32), jnp.zeros((1,1,1,768)),{}, {})["params"]
pool=rng.standard_normal(32_000_000,dtype=np.float32)
def mk(path,s):
    n=int(np.prod(s.shape)); f=s.shape and int(np.prod(s.shape[:-1])) or 1
    a=pool[:n].reshape(s.shape)
    return jnp.asarray(a/np.sqrt(f) if len(s.shape)>1 else (1+.1*a if path[-1].key=="scale" else .05*a))
params=jax.tree_util.tree_map_with_path(mk,shapes)
print("params",jax.devices(),jax.__version__,flush=True)
def scene(B,M,N):
    cam=lambda V: Cameras(jnp.asarray(from_spherical(rng.uniform(.4,2.6,(B,V)),rng.uniform(-3,3,(B,V)),rng.uniform(1.5,2.2,(B,V)))))
    return (jnp.asarray(rng.standard_normal((B,M,32,32,4),dtype=np.float32)), jnp.asarray(rng.integers(0,1000,B)), jnp.asarray(rng.standard_normal((B,N,49,768),dtype=np.float32)), cam(M), cam(N))
def apply(p,x,t,tok,tc,rc): return net.apply({"params":p},x,t,tok,cape.poses("6dof",tc),cape.poses("6dof",rc))
if mode=="fwd":
    B,M,N=2,int(os.environ.get("M","25")),3; f=jax.jit(apply)
    if "bf16p" in opts: params=jax.tree.map(lambda a:a.astype(jnp.bfloat16),params)
elif mode=="scan":
    B,M,N=2,25,3
    params=jax.tree.map(lambda a:a.astype(jnp.bfloat16),params)
    f=jax.jit(lambda p,x,*a: jax.lax.scan(lambda h,_: (h*.9+.1*apply(p,h,*a),None),x,None,length=10)[0])
else:
    B,M,N=32,3,3
    f=jax.jit(lambda p,*a: jax.value_and_grad(lambda q: jnp.mean(jnp.square(apply(q,*a)-a[0])))(p))
args=scene(B,M,N)
t0=time.time(); c=f.lower(params,*args).compile(); print("compile",time.time()-t0, "temp GiB",c.memory_analysis().temp_size_in_bytes/2**30,flush=True)
out=c(params,*args); jax.block_until_ready(out)
ts=[]
for _ in range(6):
    t0=time.time(); out=None; out=c(params,*args); jax.block_until_ready(out); ts.append((time.time()-t0)*1e3)
print(mode,sorted(opts),"ms median",np.median(ts),"range",min(ts),max(ts), "finite", all(bool(jnp.isfinite(l).all()) for l in jax.tree.leaves(out)[:3]),flush=True)
if "prof" in opts:
    d="/tmp/prof"; 
    with jax.profiler.trace(d,create_perfetto_trace=True):
        out=c(params,*args); jax.block_until_ready(out)
    fn=glob.glob(d+"/**/perfetto_trace.json.gz",recursive=True)[0]
    ev=json.load(gzip.open(fn)); ev=ev["traceEvents"] if isinstance(ev,dict) else ev
    names={e["pid"]:e["args"]["name"] for e in ev if e.get("ph")=="M" and e["name"]=="process_name"}
    tn={(e["pid"],e["tid"]):e["args"]["name"] for e in ev if e.get("ph")=="M" and e["name"]=="thread_name"}
    agg=collections.Counter(); cnt=collections.Counter()
    for e in ev:
        if e.get("ph")=="X" and "GPU" in names.get(e["pid"],"") and "Stream" in tn.get((e["pid"],e["tid"]),""):
            k=e["name"]; agg[k]+=e["dur"]/1e3; cnt[k]+=1
    print("streams",set(tn.values())); print("total",sum(agg.values()),len(agg))
    import re
    cat=collections.Counter()
    for k,v in agg.items():
        g=re.sub(r"[_.]?\d+","",k)[:60]; cat[g]+=v
    for k,v in cat.most_common(40): print(f"{v:8.2f} {k}")
    print("--"); 
    for k,v in agg.most_common(25): print(f"{v:8.2f} x{cnt[k]} {k[:110]}")
    if os.environ.get("OUT"): open(os.environ["OUT"]+"/hlo.txt","w").write(c.as_text())
